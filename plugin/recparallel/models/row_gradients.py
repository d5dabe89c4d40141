"""Gradients of a table of which a step looks up few rows, kept by rows until the step is over.

Autograd makes a gradient of the size of the whole table for every look-up and adds it to that of the look-up before. For a large
catalogue this takes longer than the look-ups' own work.

Shapes: N looked-up rows, V rows of the table, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

KEEPER = "recparallel_rows"
"""The attribute of a table, and of a view of it, that holds its :class:`RowGradients`; only engines that hand them over set it."""

_MOST = 4
"""A keeper holds at most the table's rows divided by this."""


class RowGradients:
    """What the look-ups of a step hand back for one table (V, D).

    Attributes:
        trigger: requires a gradient, and never gets one.
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self.trigger = table.detach().new_zeros(()).requires_grad_()
        self.forget()

    def read(self, rows: Tensor) -> Tensor:
        """Rows (…, D) of the table as a look-up shall see them, for int64 numbers of any shape."""
        return functional.embedding(rows, self._table.detach())

    def add(self, rows_N: Tensor, values_ND: Tensor) -> None:
        """Keep the gradient of a look-up; where much has come together, room is made. It is copied: a pipeline may receive the next
        micro-batch's in the same memory."""
        self._rows.append(rows_N)
        self._values.append(values_ND.clone())
        self._kept += len(rows_N)
        if self._kept > max(len(self._table) // _MOST, 2 * self._summed):
            self.make_room()

    def make_room(self) -> None:
        """The table's gradient takes what is kept."""
        self.hand_over()

    @torch.no_grad()
    def hand_over(self) -> None:
        """Add everything to ``table.grad``, summed in at least fp32 row by row; without look-ups it stays as it is."""
        if not self._rows:
            return
        rows_U, sums_UD = self.take()
        table = self._table
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad.index_add_(0, rows_U, sums_UD.to(table.dtype))

    @torch.no_grad()
    def take(self) -> tuple[Tensor, Tensor]:
        """Different rows (U,) int64 with their gradients (U, D), summed in at least fp32; nothing is kept any more."""
        exact = torch.promote_types(self._table.dtype, torch.float32)
        if not self._rows:
            nothing = self._table.new_zeros(0, self._table.shape[1], dtype=exact)
            return torch.zeros(0, dtype=torch.int64, device=nothing.device), nothing
        values_ND = torch.cat(self._values)
        rows_U, place_N = torch.cat(self._rows).unique(return_inverse=True)
        sums_UD = values_ND.new_zeros(len(rows_U), values_ND.shape[1], dtype=exact)
        sums_UD.index_add_(0, place_N, values_ND.to(exact))
        self.forget()
        return rows_U, sums_UD

    def forget(self) -> None:
        """Drop what was kept."""
        self._rows: list[Tensor] = []
        self._values: list[Tensor] = []
        self._kept = self._summed = 0


class SummedRows(RowGradients):
    """The same for a table whose gradient stays by rows to the end of the step: it never gets one of its own size.

    Args:
        table: need not require a gradient.
        read: rows as a look-up shall see them, in place of :meth:`RowGradients.read`.
    """

    def __init__(self, table: Tensor, read: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(table)
        if read is not None:
            self.read = read  # type: ignore[method-assign, assignment]

    def make_room(self) -> None:
        """Rows that came more than once are added up."""
        rows_U, sums_UD = self.take()
        self._rows, self._values, self._kept, self._summed = [rows_U], [sums_UD], len(rows_U), len(rows_U)


def nonzero_rows(table: Tensor) -> Tensor:
    """Numbers of the rows of ``table`` (V, D), contiguous, that hold anything but zeros, ascending, int64.

    By the largest byte of each row, which reads a large table two to three times as fast as comparing its numbers. NaN is not
    zero; a row with a -0.0 is taken along, which changes no sum.
    """
    return table.view(torch.uint8).amax(dim=1).nonzero().view(-1)


def keeper_of(table: Tensor) -> RowGradients | None:
    """Where the gradients of look-ups in ``table`` go, or None where autograd makes them."""
    return getattr(table, KEEPER, None)


def look_up_rows(rows: Tensor, keeper: RowGradients) -> Tensor:
    """Rows (…, D) of the keeper's table for int64 ``rows`` of any shape, whose gradient goes to ``keeper``."""
    return _LookUp.apply(keeper.trigger, rows, keeper)  # type: ignore[no-any-return]


def rows_of(table: Tensor, rows: Tensor) -> Tensor:
    """Rows (…, D) of a table; their gradient goes to its keeper, where it has one."""
    keeper = keeper_of(table)
    return table[rows] if keeper is None else look_up_rows(rows, keeper)


class _LookUp(torch.autograd.Function):
    """Autograd runs a backward pass for what requires a gradient; a keeper's trigger does, whether or not the table does."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, rows: Tensor, keeper: RowGradients) -> Tensor:
        ctx.keeper = keeper
        ctx.save_for_backward(rows)
        return keeper.read(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (rows,) = ctx.saved_tensors
        ctx.keeper.add(rows.reshape(-1), grad.reshape(-1, grad.shape[-1]))
        return None, None, None
