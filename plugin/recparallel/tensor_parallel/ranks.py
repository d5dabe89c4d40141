"""The ranks that share the layers of a stage."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from recparallel.errors import ConfigError


class TensorRanks:
    """This rank among those that share every layer of its stage.

    Args:
        rank: its number, from 0.
        size: how many they are.
        shares: of the rows of a table, one a rank, adding up to 1; equal ones if left out.
        timing: they only time their shares of layers, each for itself: what they would exchange is left out.
        sequence: between what they compute together each of them has its share of the positions alone.

    Attributes:
        group: over which they exchange; set by the engine once it exists.
    """

    group: dist.ProcessGroup | None = None

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        shares: Sequence[float] = (),
        timing: bool = False,
        sequence: bool = False,
    ) -> None:
        if not 0 <= rank < size:
            raise ConfigError(f"tensor rank must lie in 0…{size - 1}, got {rank}")
        self.rank, self.size, self.shares, self.timing = rank, size, tuple(shares), timing
        self.sequence = sequence and size > 1

    def __repr__(self) -> str:
        return f"a share of {self.size}{' by positions' if self.sequence else ''}"  # not which one: all cost the same

    @property
    def alone(self) -> bool:
        """No other rank shares the layers."""
        return self.size == 1

    def share(self, count: int) -> tuple[int, int]:
        """First and end of this rank's share of ``count`` rows, of which there are at least as many as ranks. Equal shares differ
        by at most one row, and none is empty."""
        return self._first(count, self.rank), self._first(count, self.rank + 1)

    def _first(self, count: int, rank: int) -> int:
        if not self.shares:
            return count * rank // self.size
        if rank == self.size:
            return count
        first = 0
        for number in range(rank):
            wanted = round(count * sum(self.shares[: number + 1]))
            first = min(max(wanted, first + 1), count - (self.size - 1 - number))
        return first

    def positions(self, length: int) -> tuple[int, int]:
        """First and end of this rank's share of ``length`` positions.

        Raises:
            ConfigError: they cannot be divided evenly.
        """
        check_positions(length, self.size)
        return self.rank * (length // self.size), (self.rank + 1) * (length // self.size)

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduce ``tensor`` over the ranks, in place; gives it back."""
        if self.alone or self.timing or tensor.numel() == 0:
            return tensor
        dist.all_reduce(tensor, op=op, group=self._known_group())
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """What all ranks have, one after the other along the first dimension."""
        if self.timing:
            return tensor.repeat(self.size, *[1] * (tensor.dim() - 1))
        gathered = tensor.new_empty(self.size * tensor.shape[0], *tensor.shape[1:])
        dist.all_gather_into_tensor(gathered, tensor.contiguous(), group=self._known_group())
        return gathered

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """This rank's share of the sum over the ranks, along the first dimension, which they divide evenly."""
        first, end = self.positions(tensor.shape[0])
        if self.timing:
            return tensor[first:end].clone()
        share = tensor.new_empty(end - first, *tensor.shape[1:])
        dist.reduce_scatter_tensor(share, tensor.contiguous(), group=self._known_group())
        return share

    def _known_group(self) -> dist.ProcessGroup:
        if self.group is None:
            raise RuntimeError(
                "the ranks that share these layers have no group: build the model by recparallel.initialize"
            )
        return self.group


def check_positions(length: int, size: int) -> None:
    """Refuse a length that ``size`` ranks cannot divide evenly.

    Raises:
        ConfigError: what was given, and what would do.
    """
    if length % size:
        raise ConfigError(
            f"recparallel.sequence_parallel: {length} positions cannot be divided among {size} tensor ranks; use a max_length "
            f"that is a multiple of {size}"
        )


ALONE = TensorRanks()
"""No sharing."""
