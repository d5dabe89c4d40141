"""Sum sparse gradients by regions of equal work: the volume stays near ``2 k``, however many ranks there are."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.collectives.base import Aggregation
from recparallel.compression.base import Codec
from recparallel.compression.sparse import Sparsifier, position_dtype


class SparseRegions(Aggregation):
    """Balanced sparse all-reduce.

    1. Every rank selects k elements. All agree on P regions of the gradient that hold about k / P of each rank's selection: their
       bounds are the means of those that would be even for each rank.
    2. What a rank selected of a region goes to the rank of its number, which adds it up, in the order of ranks.
    3. Of each sum the ``ceil(k / P)`` largest elements are gathered by all.

    ``2 k (P - 1) / P`` elements with their positions arrive at each rank, against ``k (P - 1)`` when payloads are gathered. What a
    rank selected and nobody chose in step 3 it keeps (Li & Hoefler, "Near-optimal sparse allreduce for distributed deep learning",
    PPoPP 2022; there a threshold makes the choice of step 3, here its number is fixed, and so is the size of the message).
    """

    name = "sparse"

    @classmethod
    def refuses(cls, codec: Codec) -> str:
        return "" if isinstance(codec, Sparsifier) else "it does not select elements"

    def sum(self, codec: Codec, given_N: Tensor, total_N: Tensor, *, seed: int, keep_rest: bool) -> int:
        assert isinstance(codec, Sparsifier)
        size, kept = len(given_N), codec.num_kept(len(given_N))
        positions = codec.select(given_N, seed=self.seed_of(codec, seed, rank=self.rank)).sort().values
        bounds = self._bounds(size, positions)
        values, places, sent = self._to_owners(given_N, positions, bounds, total_N.dtype)

        first, last = bounds[self.rank], bounds[self.rank + 1]
        region = total_N.zero_()[first:last]
        for value, place in zip(values, places):
            region.index_add_(0, place - first, value)
        each = -(-kept // self.world)
        best = _largest(region, each)
        pairs = _pairs(region[best], best + first, size)
        region.zero_()
        padded = torch.cat([pairs, pairs.new_full((each - len(pairs), 2), -1)])
        everyone = padded.new_empty(self.world * each, 2)
        dist.all_gather_into_tensor(everyone, padded, group=self.group)
        chosen_values, chosen = _unpaired(everyone[everyone[:, 1] >= 0], total_N.dtype)
        total_N[chosen] = chosen_values

        if keep_rest:
            given_N[positions[total_N[positions] != 0]] = 0.0  # what is chosen is not zero
        return sent + padded.numel() * padded.element_size()

    def _bounds(self, size: int, positions: Tensor) -> list[int]:
        """Of the regions, P + 1 of them."""
        cuts = torch.arange(1, self.world, device=positions.device) * len(positions) // self.world
        inner = positions[cuts].double()
        dist.all_reduce(inner, group=self.group)
        return [0, *(inner / self.world).long().tolist(), size]

    def _to_owners(
        self, flat_N: Tensor, positions: Tensor, bounds: Sequence[int], exact: torch.dtype
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], int]:
        """What each rank selected of this rank's region, values and positions, and the bytes that were handed over."""
        counts = torch.searchsorted(positions, positions.new_tensor(bounds)).diff()
        theirs = torch.empty_like(counts)
        dist.all_to_all_single(theirs, counts, group=self.group)
        sending, receiving = counts.tolist(), theirs.tolist()
        pairs = _pairs(flat_N[positions].to(exact), positions, len(flat_N))
        arrived = pairs.new_empty(sum(receiving), 2)
        dist.all_to_all_single(arrived, pairs, receiving, sending, group=self.group)
        values, places = _unpaired(arrived, exact)
        num_bytes = pairs.numel() * pairs.element_size() + counts.numel() * counts.element_size()
        return values.split(receiving), places.split(receiving), num_bytes


def _pairs(values: Tensor, positions: Tensor, size: int) -> Tensor:
    """(n, 2): the bits of a value, and its position. Positions that need 64 bits travel with values in fp64."""
    integers = position_dtype(size)
    values = values if values.element_size() >= integers.itemsize else values.double()
    words = torch.int64 if values.element_size() == torch.int64.itemsize else torch.int32
    return torch.stack([values.view(words), positions.to(words)], dim=1)


def _unpaired(pairs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values (n,) of ``dtype`` and positions (n,), int64."""
    floats = torch.float64 if pairs.element_size() == torch.int64.itemsize else torch.float32
    return pairs[:, 0].contiguous().view(floats).to(dtype), pairs[:, 1].long()


def _largest(region: Tensor, most: int) -> Tensor:
    """Positions of the largest elements, at most so many, among those that are not zero; NaN counts as large."""
    filled = (region != 0).nonzero().view(-1)
    if len(filled) <= most:
        return filled
    return filled[torch.topk(region[filled].abs(), most, sorted=False).indices]
