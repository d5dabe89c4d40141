"""Positions that ranks share between the layers which they compute together: norms, dropouts and residual sums run on a rank's own.

Shapes: … any, L positions, T ranks, D width. In a tensor without a dimension of sequences, rows take the place of positions.

Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from recparallel.tensor_parallel.ranks import TensorRanks

Exchange: TypeAlias = Callable[[Tensor], Tensor]


def gather_positions(x: Tensor, ranks: TensorRanks) -> Tensor:
    """All positions (…, L, D) of what each rank has a share of (…, L / T, D), into what each computes for itself; the backward
    pass adds up their gradients and gives each its share."""
    return _Exchange.apply(x, partial(_gather, ranks=ranks), partial(_sum, ranks=ranks))  # type: ignore[no-any-return]


def sum_to_positions(x: Tensor, ranks: TensorRanks) -> Tensor:
    """This rank's share of the positions of the sum of every rank's ``x`` (…, L, D); the backward pass gathers the gradient."""
    return _Exchange.apply(x, partial(_sum, ranks=ranks), partial(_gather, ranks=ranks))  # type: ignore[no-any-return]


def all_positions(x: Tensor, ranks: TensorRanks) -> Tensor:
    """All positions (…, L, D), into what is the same on all ranks, its gradient too: the backward pass takes each rank's share."""
    if not ranks.sequence:
        return x
    return _Exchange.apply(x, partial(_gather, ranks=ranks), partial(_own, ranks=ranks))  # type: ignore[no-any-return]


def add_up_gradients(parameters: Iterable[Tensor], ranks: TensorRanks) -> None:
    """Weights that all ranks have, of whose gradient each sees a part: that of its own heads or positions."""
    for parameter in parameters:
        parameter.register_hook(lambda grad: ranks.all_reduce(grad.clone()))


class _Exchange(torch.autograd.Function):
    """``forth`` in the forward pass, ``back`` on the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Exchange, back: Exchange) -> Tensor:
        ctx.back = back
        return forth(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad), None, None


def _gather(x: Tensor, ranks: TensorRanks) -> Tensor:
    return ranks.all_gather(x.movedim(-2, 0)).movedim(0, -2).contiguous()


def _sum(x: Tensor, ranks: TensorRanks) -> Tensor:
    return ranks.reduce_scatter(x.movedim(-2, 0)).movedim(0, -2).contiguous()


def _own(x: Tensor, ranks: TensorRanks) -> Tensor:
    first, end = ranks.positions(x.shape[-2])
    return x[..., first:end, :].contiguous()
