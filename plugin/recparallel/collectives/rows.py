"""Sum gradients of a table over a few ranks by its rows that are not zero: a step looks up some thousands of items, and a
catalogue has millions."""

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
        self._add_rows(gradient, rows, counts.tolist(), most)
        return most * row_bytes

    def _add_rows(self, table: Tensor, rows: Tensor, counts: list[int], most: int) -> None:
        if most == 0:
            return
        width, own = table.shape[1], len(rows)
        indices, values = rows.new_zeros(most), table.new_zeros(most, width)
        indices[:own] = rows
        torch.index_select(table, 0, rows, out=values[:own])
        all_indices, all_values = rows.new_empty(self._world * most), table.new_empty(self._world * most, width)
        dist.all_gather_into_tensor(all_indices, indices, group=self._group)
        dist.all_gather_into_tensor(all_values, values, group=self._group)
        table[rows] = 0.0
        for rank, count in enumerate(counts):
            theirs = slice(rank * most, rank * most + count)
            table.index_add_(0, all_indices[theirs], all_values[theirs])
