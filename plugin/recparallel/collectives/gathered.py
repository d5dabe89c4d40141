"""Sum payloads by gathering all of them: exact for any codec; the volume grows with the number of replicas."""

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.collectives.base import Aggregation, Summed, zeros_for_sum
from recparallel.compression.base import Codec
from recparallel.compression.packed import pack_into, unpack


class Gathered(Aggregation):
    """Every rank gets every rank's payload, in one message, and adds them in the order of ranks.

    ``(P - 1) · payload`` bytes arrive at each of P ranks: for two or three replicas, or payloads so small that latency decides.
    """

    name = "gathered"

    def sum(self, codec: Codec, flat_N: Tensor, *, seed: int, keep_rest: bool) -> Summed:
        size, layout = len(flat_N), codec.layout(len(flat_N), flat_N.dtype)
        num_bytes = codec.payload_bytes(size, flat_N.dtype)
        wire_B = torch.empty(num_bytes, dtype=torch.uint8, device=flat_N.device)
        pack_into(codec.encode(flat_N, seed=self.seed_of(codec, seed, rank=self.rank)), wire_B)
        gathered_PB = wire_B.new_empty(self.world, num_bytes)
        dist.all_gather_into_tensor(gathered_PB.view(-1), wire_B, group=self.group)
        total_N, rest_N = zeros_for_sum(size, flat_N), None
        for rank in range(self.world):
            payload, own_seed = unpack(gathered_PB[rank], layout), self.seed_of(codec, seed, rank=rank)
            codec.add_decoded(payload, total_N, seed=own_seed)
            if keep_rest and rank == self.rank:
                sent_N = zeros_for_sum(size, flat_N)
                codec.add_decoded(payload, sent_N, seed=own_seed)
                rest_N = torch.sub(flat_N, sent_N, out=sent_N)
        return Summed(total_N, rest_N, num_bytes)
