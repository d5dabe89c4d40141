"""AdamW on the rows of a large table that a step has touched: what others have missed, they catch up with when they are needed.

Shapes: V rows of the table, D width, N looked-up rows, U different rows with a gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recparallel.optimizers.idle_steps import AdamWSettings, IdleSteps

_PIECE = 2**17
"""Elements of a table that are brought up to date at once."""


class RowAdamWState(NamedTuple):
    """Of all rows, after the same step, by the names that torch's AdamW has for them.

    Attributes:
        weight, exp_avg, exp_avg_sq: (V, D), in at least fp32.
        step: how many were made.
    """

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int


class RowAdamW:
    """AdamW with decoupled weight decay, whose step costs as much as the rows that have a gradient.

    Weights, moments and decay follow dense AdamW, also of rows that steps leave out; :mod:`~recparallel.optimizers.idle_steps` says
    what becomes of ``eps``. A row is brought up to date before it is read or stepped, and all of them in :meth:`settle`.
    Reading stores nothing, so copies of a table that read different rows stay the same to the last bit.

    ``torch.optim.SparseAdam`` differs: rows without a gradient keep their moments, do not move and do not decay.

    Args:
        table: (V, D), of any floating type, contiguous. Half-precision tables get an fp32 copy, from which they are rounded.

    Example:
        >>> table = torch.ones(100, 4)
        >>> optimizer = RowAdamW(table)
        >>> settings = AdamWSettings(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        >>> optimizer.step(torch.tensor([3, 7]), torch.ones(2, 4), settings)
        >>> [round(float(x), 3) for x in table[[2, 3], 0]]
        [1.0, 0.9]
    """

    def __init__(self, table: Tensor) -> None:
        self.steps = 0
        self._table_VD = table.detach()
        exact = torch.promote_types(table.dtype, torch.float32)
        self._weight_VD = self._table_VD.to(exact)  # the table itself where that is its type
        self._first_VD, self._second_VD = torch.zeros_like(self._weight_VD), torch.zeros_like(self._weight_VD)
        self._eps = 0.0
        self._idle: IdleSteps
        self._last_V: Tensor
        self._begin_anew(0.0)

    @property
    def state_bytes(self) -> int:
        """That are kept beside the table."""
        kept = [self._first_VD, self._second_VD, self._last_V]
        kept += [] if self._is_exact else [self._weight_VD]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    @property
    def _is_exact(self) -> bool:
        return self._table_VD.data_ptr() == self._weight_VD.data_ptr()

    def current(self, rows_N: Tensor) -> Tensor:
        """Rows (…, D) of the table's type, for numbers int64 of any shape, as dense AdamW would have them now."""
        if not self._idle.newest:
            return functional.embedding(rows_N, self._table_VD)
        return (
            self._up_to_date(rows_N.reshape(-1))[0]
            .to(self._table_VD.dtype)
            .view(*rows_N.shape, self._table_VD.shape[1])
        )

    def step(self, rows_U: Tensor, gradient_UD: Tensor, settings: AdamWSettings) -> None:
        """One step of all rows, of which these have a gradient.

        Args:
            rows_U: int64, each once.
            gradient_UD: theirs.
            settings: of this step.
        """
        self.steps += 1
        self._eps = settings.eps
        first, second = settings.betas
        weight_UD, first_UD, second_UD = self._up_to_date(rows_U)
        gradient_UD = gradient_UD.to(weight_UD.dtype)
        first_UD.lerp_(gradient_UD, 1.0 - first)
        second_UD.mul_(second).addcmul_(gradient_UD, gradient_UD, value=1.0 - second)
        root_UD = (second_UD / (1.0 - second**self.steps)).sqrt_().add_(settings.eps)
        weight_UD.mul_(1.0 - settings.lr * settings.weight_decay)
        weight_UD.addcdiv_(first_UD, root_UD, value=-settings.lr / (1.0 - first**self.steps))
        self._store(rows_U, weight_UD, first_UD, second_UD)
        self._idle.add(self.steps, settings)
        self._last_V.index_fill_(0, rows_U, self._idle.newest)
        self._second_beta = second
        if self._idle.is_full:
            self.settle()

    def settle(self) -> None:
        """Bring all rows up to date; the table is what dense AdamW would have made of it."""
        if not self._idle.newest:
            return
        size = max(1, _PIECE // self._table_VD.shape[1])
        for at in range(0, len(self._table_VD), size):
            piece = slice(at, at + size)
            self._catch_up(self._weight_VD[piece], self._first_VD[piece], self._second_VD[piece], self._last_V[piece])
            if not self._is_exact:
                self._table_VD[piece].copy_(self._weight_VD[piece])
        self._begin_anew(self._second_beta)

    def state(self) -> "RowAdamWState":
        """Up to date; not copies."""
        self.settle()
        return RowAdamWState(self._weight_VD, self._first_VD, self._second_VD, self.steps)

    def set_state(self, weight: Tensor, *, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, second_beta: float) -> None:
        """Go on from the state of an AdamW, dense or not."""
        self._weight_VD.copy_(weight)
        self._table_VD.copy_(self._weight_VD)
        self._first_VD.copy_(exp_avg)
        self._second_VD.copy_(exp_avg_sq)
        self.steps = step
        self._begin_anew(second_beta)

    def _begin_anew(self, second_beta: float) -> None:
        self._second_beta = second_beta
        self._idle = IdleSteps(self.steps, second_beta, self._table_VD.device)
        self._last_V = torch.zeros(len(self._table_VD), dtype=torch.int32, device=self._table_VD.device)

    def _up_to_date(self, rows_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and moments (N, D) of rows, in memory of their own."""
        weight_ND, first_ND, second_ND, last_N = (
            kept.index_select(0, rows_N) for kept in (self._weight_VD, self._first_VD, self._second_VD, self._last_V)
        )
        self._catch_up(weight_ND, first_ND, second_ND, last_N)
        return weight_ND, first_ND, second_ND

    def _catch_up(self, weight_ND: Tensor, first_ND: Tensor, second_ND: Tensor, last_N: Tensor) -> None:
        """Bring rows up to date in place."""
        idle = self._idle.at(last_N.long(), weight_ND.dtype)
        least = torch.finfo(weight_ND.dtype).tiny  # for a row that has missed nothing, or never had a gradient
        against_ND = second_ND.sqrt().mul_(idle.root * idle.damped).add_(self._eps * idle.pull).add_(least)
        torch.div(first_ND * (idle.pull * idle.damped), against_ND, out=against_ND)
        weight_ND.mul_(idle.decay).sub_(against_ND)
        first_ND.mul_(idle.first)
        second_ND.mul_(idle.second)

    def _store(self, rows_N: Tensor, weight_ND: Tensor, first_ND: Tensor, second_ND: Tensor) -> None:
        self._weight_VD.index_copy_(0, rows_N, weight_ND)
        self._first_VD.index_copy_(0, rows_N, first_ND)
        self._second_VD.index_copy_(0, rows_N, second_ND)
        if not self._is_exact:
            self._table_VD.index_copy_(0, rows_N, weight_ND.to(self._table_VD.dtype))
