"""The shapes of tensors that cross a boundary, known ahead from the shapes of micro-batches.

Shapes: B rows and L positions of a micro-batch; a tensor behind a layer is (B, L, …), or (B, L / T, …) on each of T tensor ranks
that share positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Rows = tuple[int, int]
"""B and L."""


@dataclass(frozen=True)
class BoundaryShapes:
    """What crosses one boundary.

    Attributes:
        seen: shape of one tensor that crossed it.
        of: B and L of the micro-batch that it was made from; None where all have one shape.

    Example:
        >>> BoundaryShapes(torch.Size([4, 25, 16]), of=(4, 50)).in_step([(4, 50), (2, 30)])
        [torch.Size([4, 25, 16]), torch.Size([2, 15, 16])]
    """

    seen: torch.Size
    of: Rows | None

    def in_step(self, micro_batches: Sequence[Rows | None]) -> list[torch.Size]:
        """Of the tensors of these micro-batches."""
        return [
            self.seen if self.of is None or rows is None else scaled(self.seen, self.of, rows) for rows in micro_batches
        ]


def scaled(shape: torch.Size, of: Rows, to: Rows) -> torch.Size:
    """What a tensor of this shape, made from a micro-batch ``of``, would have from another."""
    rows, positions, *rest = shape
    return torch.Size((rows * to[0] // of[0], positions * to[1] // of[1], *rest))
