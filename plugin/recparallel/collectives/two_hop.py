"""Sum payloads in two hops: every rank sums one share, and hands its sum to all."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from recparallel.collectives.base import Aggregation
from recparallel.compression.base import Codec, Payload
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

    def sum(self, codec: Codec, given_N: Tensor, total_N: Tensor, *, seed: int, keep_rest: bool) -> int:
        world, size = self.world, len(given_N)
        share = -(-size // (world * codec.least)) * codec.least
        layout, exact = codec.layout(share, given_N.dtype), total_N.dtype
        wire_PB = self._wire(codec, share, given_N.dtype, given_N.device)
        own_seed = self.seed_of(codec, seed, rank=self.rank)
        for rank, given in enumerate(_shares(given_N, world, share)):
            pack_into(codec.encode(_filled(given, share), seed=own_seed + rank), wire_PB[rank])
            if keep_rest:
                payload = unpack(wire_PB[rank], layout)
                _add_decoded(codec, payload, given, share, seed=own_seed + rank, alpha=-1.0)
        arrived_PB = torch.empty_like(wire_PB)
        dist.all_to_all_single(arrived_PB.view(-1), wire_PB.view(-1), group=self.group)

        sum_S = torch.zeros(share, dtype=exact, device=given_N.device)
        for rank in range(world):
            theirs = self.seed_of(codec, seed, rank=rank) + self.rank
            codec.add_decoded(unpack(arrived_PB[rank], layout), sum_S, seed=theirs)
        second_PB, second = self._wire(codec, share, exact, given_N.device), codec.layout(share, exact)
        mine_B, mine_seed = second_PB.new_empty(second_PB.shape[1]), self.seed_of(codec, seed, rank=self.rank, hop=1)
        pack_into(codec.encode(sum_S, seed=mine_seed), mine_B)
        if keep_rest:
            codec.add_decoded(unpack(mine_B, second), sum_S, seed=mine_seed, alpha=-1.0)
            own = _shares(given_N, world, share)[self.rank]
            own.add_(sum_S[: len(own)])
        dist.all_gather_into_tensor(second_PB.view(-1), mine_B, group=self.group)
        for rank, total in enumerate(_shares(total_N.zero_(), world, share)):
            theirs = self.seed_of(codec, seed, rank=rank, hop=1)
            _add_decoded(codec, unpack(second_PB[rank], second), total, share, seed=theirs)
        return wire_PB.numel() + mine_B.numel()

    def _wire(self, codec: Codec, share: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(self.world, codec.payload_bytes(share, dtype), dtype=torch.uint8, device=device)


def _shares(flat_N: Tensor, world: int, share: int) -> list[Tensor]:
    """Views; the last are shorter, or empty, where N is no multiple."""
    return [flat_N[rank * share : (rank + 1) * share] for rank in range(world)]


def _filled(part: Tensor, share: int) -> Tensor:
    """With zeros, up to a share."""
    return part if len(part) == share else functional.pad(part, (0, share - len(part)))


def _add_decoded(codec: Codec, payload: Payload, into: Tensor, share: int, *, seed: int, alpha: float = 1.0) -> None:
    """Of a share, to as much as there is of it."""
    whole_S = _filled(into, share)
    codec.add_decoded(payload, whole_S, seed=seed, alpha=alpha)
    if whole_S is not into:
        into.copy_(whole_S[: len(into)])
