"""Sum payloads by gathering all of them: exact for any codec; the volume grows with the number of replicas."""

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.collectives.base import Aggregation
from recparallel.compression.base import Codec
from recparallel.compression.packed import pack_into, unpack


class Gathered(Aggregation):
    """Every rank gets every rank's payload, in one message, and adds them in the order of ranks.

    ``(P - 1) · payload`` bytes arrive at each of P ranks: for two or three replicas, or payloads so small that latency decides.
    """

    name = "gathered"

    def sum(self, codec: Codec, given_N: Tensor, total_N: Tensor, *, seed: int, keep_rest: bool) -> int:
        layout, num_bytes = codec.layout(len(given_N), given_N.dtype), codec.payload_bytes(len(given_N), given_N.dtype)
        wire_B = torch.empty(num_bytes, dtype=torch.uint8, device=given_N.device)
        own_seed = self.seed_of(codec, seed, rank=self.rank)
        pack_into(codec.encode(given_N, seed=own_seed), wire_B)
        if keep_rest:
            codec.add_decoded(unpack(wire_B, layout), given_N, seed=own_seed, alpha=-1.0)
        gathered_PB = wire_B.new_empty(self.world, num_bytes)
        dist.all_gather_into_tensor(gathered_PB.view(-1), wire_B, group=self.group)
        total_N.zero_()
        for rank in range(self.world):
            codec.add_decoded(unpack(gathered_PB[rank], layout), total_N, seed=self.seed_of(codec, seed, rank=rank))
        return num_bytes
