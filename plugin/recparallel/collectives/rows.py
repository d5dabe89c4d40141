"""Sum gradients of a table over a few ranks by its rows that are not zero: a step looks up some thousands of items, and a
catalogue has millions.

Shapes: V rows of the table, D width, U different rows with a gradient.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.models.row_gradients import nonzero_rows

Way = Literal["rows", "dense"]

_INDEX_BYTES = 8
_STAY_DENSE = 100


class RowSum:
    """Sums one table's gradient, step after step, by whatever sends fewer bytes: its rows that are not zero with their
    numbers, or all of it.

    1. Every rank finds its rows that are not zero, and all learn how many each has. From the same numbers all come to the same
       decision.
    2. By rows: they are gathered, padded to the most of any rank, and added in the order of ranks. The sum is exact, and the
       same on every rank to the last bit; what is zero on all ranks stays zero. ``(p - 1) · most · (row + 8)`` bytes arrive.
    3. Otherwise a dense all-reduce, whose ring brings ``2 (p - 1) / p`` of the gradient, and the next hundred times too,
       without looking: a loss that reaches every row does so in each step.

    Args:
        group: the ranks that hold a copy of the table, at least two; every one calls, each time.

    Source for the exchange of rows: Zhao & Canny, "Kylix: A Sparse Allreduce for Commodity Clusters", 2014, of which this is
    the flat case, for groups of few ranks.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._world = dist.get_world_size(group)
        self._dense_left = 0

    def sum(self, gradient: Tensor) -> tuple[Way, int]:
        """Make ``gradient`` (V, D), dense, of any floating type, the sum of those of all ranks.

        Returns:
            how it travelled, and the bytes that this rank handed to collectives.
        """
        sent = self.sum_if_fewer(gradient)
        if sent is not None:
            return "rows", sent
        dist.all_reduce(gradient, group=self._group)
        return "dense", gradient.numel() * gradient.element_size()

    def sum_if_fewer(self, gradient: Tensor) -> int | None:
        """:meth:`sum` where its rows are fewer bytes than all of it; nothing else otherwise.

        Returns:
            the bytes that this rank handed to collectives; None where ``gradient`` is as it was, on every rank.
        """
        dense_bytes = gradient.numel() * gradient.element_size()
        if self._dense_left or gradient.dim() != 2 or not gradient.is_contiguous():
            self._dense_left = max(self._dense_left - 1, 0)
            return None
        rows = nonzero_rows(gradient)
        counts = torch.zeros(self._world, dtype=torch.int64, device=gradient.device)
        dist.all_gather_into_tensor(counts, torch.tensor([len(rows)], device=gradient.device), group=self._group)
        most = int(counts.max())
        row_bytes = gradient.shape[1] * gradient.element_size() + _INDEX_BYTES
        if most * row_bytes * self._world >= 2 * dense_bytes:
            self._dense_left = _STAY_DENSE
            return None
        parts = list(_gathered(rows, gradient.index_select(0, rows), counts.tolist(), self._group))
        gradient[rows] = 0.0
        for their_rows, values in parts:
            gradient.index_add_(0, their_rows, values)
        return most * row_bytes


def sum_rows(rows_U: Tensor, values_UD: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, int]:
    """Sum gradients that ranks hold by rows; the result is the same on every rank to the last bit. Collective.

    Args:
        rows_U: int64, each once.
        values_UD: of any floating type.
        group: as many rows as any rank has arrive from each.

    Returns:
        rows that any rank has, ascending; their sums, in at least fp32, in the order of ranks; the bytes that this rank handed to
        collectives.
    """
    counts = rows_U.new_zeros(dist.get_world_size(group))
    dist.all_gather_into_tensor(counts, rows_U.new_tensor([len(rows_U)]), group=group)
    parts = list(_gathered(rows_U, values_UD, counts.tolist(), group))
    merged, place = torch.cat([rows for rows, _ in parts]).unique(return_inverse=True)
    exact = torch.promote_types(values_UD.dtype, torch.float32)
    sums = values_UD.new_zeros(len(merged), values_UD.shape[1], dtype=exact)
    for at, (_, values) in zip(place.split([len(rows) for rows, _ in parts]), parts):
        sums.index_add_(0, at, values.to(exact))  # one rank after the other: no row comes twice in one of them
    return merged, sums, int(counts.max()) * (values_UD.shape[1] * values_UD.element_size() + _INDEX_BYTES)


def _gathered(
    rows_U: Tensor, values_UD: Tensor, counts: list[int], group: dist.ProcessGroup
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and values of every rank, of which it has ``counts``."""
    most, world, own = max(counts), len(counts), len(rows_U)
    if most == 0:
        return iter([(rows_U, values_UD)] * world)
    indices, values = rows_U.new_zeros(most), values_UD.new_zeros(most, values_UD.shape[1])
    indices[:own], values[:own] = rows_U, values_UD
    all_indices, all_values = indices.new_empty(world * most), values.new_empty(world * most, values.shape[1])
    dist.all_gather_into_tensor(all_indices, indices, group=group)
    dist.all_gather_into_tensor(all_values, values, group=group)
    parts = [slice(rank * most, rank * most + count) for rank, count in enumerate(counts)]
    return ((all_indices[part], all_values[part]) for part in parts)
