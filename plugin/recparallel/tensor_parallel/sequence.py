"""Positions that ranks share between the layers which they compute together: norms, dropouts and residual sums run on a rank's own.

Shapes: … any, L positions, T ranks, D width. In a tensor without a dimension of sequences, rows take the place of positions.

Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from recparallel.tensor_parallel.ranks import TensorRanks


def gather_positions(x: Tensor, ranks: TensorRanks) -> Tensor:
    """All positions (…, L, D) of what each rank has a share of (…, L / T, D), into what each computes for itself; the backward
    pass adds up their gradients and gives each its share."""
    return _Gather.apply(x, ranks)  # type: ignore[no-any-return]


def sum_to_positions(x: Tensor, ranks: TensorRanks) -> Tensor:
    """This rank's share of the positions of the sum of every rank's ``x`` (…, L, D); the backward pass gathers the gradient."""
    return _SumToPositions.apply(x, ranks)  # type: ignore[no-any-return]


def all_positions(x: Tensor, ranks: TensorRanks) -> Tensor:
    """All positions (…, L, D), into what is the same on all ranks, its gradient too: the backward pass takes each rank's share."""
    return _AllPositions.apply(x, ranks) if ranks.sequence else x  # type: ignore[no-any-return]


def add_up_gradients(parameters: Iterable[Tensor], ranks: TensorRanks) -> None:
    """Weights that all ranks have, of whose gradient each sees a part: that of its own heads or positions."""
    for parameter in parameters:
        parameter.register_hook(lambda grad: ranks.all_reduce(grad.clone()))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        return _gather(x, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.ranks), None


class _SumToPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        return _sum(x, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.ranks), None


class _AllPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        return _gather(x, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        first, end = ctx.ranks.positions(grad.shape[-2])
        return grad[..., first:end, :].contiguous(), None


def _gather(x: Tensor, ranks: TensorRanks) -> Tensor:
    return ranks.all_gather(x.movedim(-2, 0)).movedim(0, -2).contiguous()


def _sum(x: Tensor, ranks: TensorRanks) -> Tensor:
    return ranks.reduce_scatter(x.movedim(-2, 0)).movedim(0, -2).contiguous()
