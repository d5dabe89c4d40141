"""Sum payloads in two hops: every rank sums one share, and hands its sum to all."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from recparallel.collectives.base import Aggregation, Summed, zeros_for_sum
from recparallel.compression.base import Codec
from recparallel.compression.packed import pack_into, unpack


class TwoHop(Aggregation):
    """Reduce-scatter and all-gather of encoded shares, with sums in fp32.

    1. The gradient is cut into P shares, each a multiple of the codec's block; a share goes encoded to the rank of its number.
    2. That rank adds what the shares stand for, in the order of ranks, and encodes the sum.
    3. All ranks gather the encoded sums.

    ``2 (P - 1) / P · payload`` bytes arrive at each rank, however many there are, and each element is encoded twice. What the
    second encoding leaves out is kept by the rank that made it (as in Tang et al., "1-bit Adam", ICML 2021; two hops of quantized
    gradients: Wang et al., "ZeRO++", 2023).
    """

    name = "two_hop"

    @classmethod
    def refuses(cls, codec: Codec) -> str:
        return "its ranks must draw the same elements" if codec.same_seed else ""

    def sum(self, codec: Codec, flat_N: Tensor, *, seed: int, keep_rest: bool) -> Summed:
        world, size = self.world, len(flat_N)
        share = -(-size // (world * codec.least)) * codec.least
        given_PS = functional.pad(flat_N, (0, world * share - size)).view(world, share)
        layout, exact = codec.layout(share, flat_N.dtype), torch.promote_types(flat_N.dtype, torch.float32)
        wire_PB = self._wire(codec, share, flat_N.dtype, flat_N.device)
        own_seed = self.seed_of(codec, seed, rank=self.rank)
        for rank in range(world):
            pack_into(codec.encode(given_PS[rank], seed=own_seed + rank), wire_PB[rank])
        rest_PS = None
        if keep_rest:
            rest_PS = torch.zeros(world, share, dtype=exact, device=flat_N.device)
            for rank in range(world):
                codec.add_decoded(unpack(wire_PB[rank], layout), rest_PS[rank], seed=own_seed + rank)
            torch.sub(given_PS, rest_PS, out=rest_PS)
        arrived_PB = torch.empty_like(wire_PB)
        dist.all_to_all_single(arrived_PB.view(-1), wire_PB.view(-1), group=self.group)

        sum_S = zeros_for_sum(share, flat_N)
        for rank in range(world):
            theirs = self.seed_of(codec, seed, rank=rank) + self.rank
            codec.add_decoded(unpack(arrived_PB[rank], layout), sum_S, seed=theirs)
        second_PB = self._wire(codec, share, exact, flat_N.device)
        mine_B = second_PB.new_empty(second_PB.shape[1])
        pack_into(codec.encode(sum_S, seed=self.seed_of(codec, seed, rank=self.rank, hop=1)), mine_B)
        dist.all_gather_into_tensor(second_PB.view(-1), mine_B, group=self.group)
        layout = codec.layout(share, exact)
        total_PS = torch.zeros(world, share, dtype=exact, device=flat_N.device)
        for rank in range(world):
            theirs = self.seed_of(codec, seed, rank=rank, hop=1)
            codec.add_decoded(unpack(second_PB[rank], layout), total_PS[rank], seed=theirs)
        if rest_PS is not None:
            rest_PS[self.rank] += sum_S.sub_(total_PS[self.rank])
        rest_N = None if rest_PS is None else rest_PS.view(-1)[:size]
        return Summed(total_PS.view(-1)[:size], rest_N, wire_PB.numel() + mine_B.numel())

    def _wire(self, codec: Codec, share: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(self.world, codec.payload_bytes(share, dtype), dtype=torch.uint8, device=device)
