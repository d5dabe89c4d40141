"""What ranks that share a layer exchange in its forward and backward pass.

Source: the conjugate pair of the first two functions is that of Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter
Language Models Using Model Parallelism", 2019.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from recparallel.tensor_parallel.ranks import TensorRanks


def copy_to_ranks(x: Tensor, ranks: TensorRanks) -> Tensor:
    """``x``, the same on all ranks, into what each computes for itself; the backward pass adds up their gradients."""
    return x if ranks.alone else _Copy.apply(x, ranks)  # type: ignore[no-any-return]


def sum_over_ranks(x: Tensor, ranks: TensorRanks) -> Tensor:
    """The sum of every rank's ``x``, the same on all; the backward pass hands its gradient to each."""
    return x if ranks.alone else _Sum.apply(x, ranks)  # type: ignore[no-any-return]


def logsumexp_over_ranks(x: Tensor, ranks: TensorRanks) -> Tensor:
    """``log Σ exp(x)`` over the ranks, elementwise, without overflow; at least one ``x`` of an element is finite."""
    return x if ranks.alone else _LogSumExp.apply(x, ranks)  # type: ignore[no-any-return]


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.all_reduce(grad.clone(memory_format=torch.contiguous_format)), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        return ranks.all_reduce(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        total = logsumexp_of_all(x, ranks)
        ctx.save_for_backward(x, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, total = ctx.saved_tensors
        return grad * (x - total).exp(), None


def logsumexp_of_all(x: Tensor, ranks: TensorRanks) -> Tensor:
    """The value of :func:`logsumexp_over_ranks`, without a gradient."""
    largest = ranks.all_reduce(x.clone(), dist.ReduceOp.MAX)
    return largest + ranks.all_reduce((x - largest).exp()).log()
