"""The ranks that share the layers of a stage."""

from typing import Any

import torch.distributed as dist
from torch import Tensor

from recparallel.errors import ConfigError


class TensorRanks:
    """This rank among those that share every layer of its stage.

    Args:
        rank: its number, from 0.
        size: how many they are.
        timing: they only time their shares of layers, each for itself: what they would exchange is left out.

    Attributes:
        group: over which they exchange; set by the engine once it exists.
    """

    group: dist.ProcessGroup | None = None

    def __init__(self, rank: int = 0, size: int = 1, *, timing: bool = False) -> None:
        if not 0 <= rank < size:
            raise ConfigError(f"tensor rank must lie in 0…{size - 1}, got {rank}")
        self.rank, self.size, self.timing = rank, size, timing

    def __repr__(self) -> str:
        return f"a share of {self.size}"  # not which one: all cost the same

    @property
    def alone(self) -> bool:
        """No other rank shares the layers."""
        return self.size == 1

    def share(self, count: int) -> tuple[int, int]:
        """First and end of this rank's share of ``count`` rows; shares differ by at most one row."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduce ``tensor`` over the ranks, in place; gives it back."""
        if self.alone or self.timing or tensor.numel() == 0:
            return tensor
        if self.group is None:
            raise RuntimeError(
                "the ranks that share these layers have no group: build the model by recparallel.initialize"
            )
        dist.all_reduce(tensor, op=op, group=self.group)
        return tensor


ALONE = TensorRanks()
"""No sharing."""
