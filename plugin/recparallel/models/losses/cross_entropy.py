"""Softmax over the whole catalogue."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recparallel.models.losses.base import TargetLoss
from recparallel.models.losses.softmax import ShareOfScores
from recparallel.tensor_parallel import TensorRanks
from recparallel.tensor_parallel.exchange import logsumexp_of_all


class CrossEntropy(TargetLoss):
    """Cross-entropy of each target against every row of the table, in at least fp32. Ranks that share the table exchange three
    numbers a target, and no scores."""

    knows_shares = True

    def __init__(self, *, num_items: int) -> None:
        self.num_items = num_items

    def total(self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(hidden_ND, table_SD, targets_N, self.num_items + 1, self.ranks)
        return total


class _Sum(torch.autograd.Function):
    """Sum of the cross-entropies of N targets."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor, num_rows: int, ranks: TensorRanks
    ) -> Tensor:
        share = ShareOfScores(hidden_ND, table_SD, targets_N, num_rows=num_rows, ranks=ranks)
        ctx.share, ctx.normalizer_N = share, logsumexp_of_all(share.summary[0], ranks)
        return (ctx.normalizer_N - ranks.all_reduce(share.summary[1].clone())).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.share.gradients(ctx.normalizer_N, grad), None, None, None
