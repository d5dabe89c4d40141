"""A table whose rows are divided among the ranks: looking up, and the softmax over all of it without its scores in one place.

Shapes: N targets, V rows of the whole table, S rows of this rank's share.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recparallel.tensor_parallel.exchange import logsumexp_of_all, sum_over_ranks
from recparallel.tensor_parallel.ranks import TensorRanks
from recparallel.tensor_parallel.split import Split, hold


def hold_rows(module: nn.Module, ranks: TensorRanks) -> None:
    """Let ``module`` hold its share of the rows of ``weight`` (V, D) in place of all of them; looks up its own padding row."""
    length = len(module.weight)  # type: ignore[arg-type]
    start, stop = ranks.share(length)
    hold(module, "weight", Split(0, length, ((start, stop),), True, ranks))
    if isinstance(module, nn.Embedding):
        module.num_embeddings = stop - start
        padding = module.padding_idx
        module.padding_idx = padding - start if padding is not None and start <= padding < stop else None  # type: ignore[assignment]


def look_up(vectors_of: Callable[[Tensor], Tensor], ids: Tensor, length: int, ranks: TensorRanks) -> Tensor:
    """Vectors of ``ids`` from a table of ``length`` rows that is divided among the ranks, the same on all.

    Args:
        vectors_of: looks up rows of this rank's share, counted from its first; linear in them.
    """
    if ranks.alone:
        return vectors_of(ids)
    local, own = own_rows(ids, length, ranks)
    return sum_over_ranks(vectors_of(local).masked_fill(~own[..., None], 0.0), ranks)


def own_rows(ids: Tensor, length: int, ranks: TensorRanks) -> tuple[Tensor, Tensor]:
    """Rows of a table of ``length`` rows, counted from this rank's first, and which of them it has; others are row 0."""
    start, stop = ranks.share(length)
    own = (ids >= start) & (ids < stop)
    return (ids - start).masked_fill(~own, 0), own


def cross_entropies(scores_NS: Tensor, targets_N: Tensor, length: int, ranks: TensorRanks) -> Tensor:
    """Cross-entropy (N,) of each target against all rows; ranks exchange three numbers a target, and no scores.

    Args:
        scores_NS: of the rows that this rank has, fp32 or fp64; their memory is used for their gradient.
        targets_N: rows of the whole table.
        length: its rows.
    """
    local_N, own_N = own_rows(targets_N, length, ranks)
    return _CrossEntropies.apply(scores_NS, local_N, own_N, ranks)  # type: ignore[no-any-return]


def scores_of_targets(scores_NS: Tensor, local_N: Tensor, own_N: Tensor, ranks: TensorRanks) -> Tensor:
    """The score (N,) of each target, from the rank that has its row; without a gradient."""
    return ranks.all_reduce(scores_NS.gather(1, local_N[:, None]).squeeze(1).masked_fill(~own_N, 0.0))


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_NS: Tensor, local_N: Tensor, own_N: Tensor, ranks: TensorRanks) -> Tensor:
        normalizer_N = logsumexp_of_all(scores_NS.logsumexp(1), ranks)
        ctx.save_for_backward(scores_NS, normalizer_N, local_N, own_N)
        return normalizer_N - scores_of_targets(scores_NS, local_N, own_N, ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None, None]:
        scores_NS, normalizer_N, local_N, own_N = ctx.saved_tensors
        grad_NS = scores_to_gradient(scores_NS, normalizer_N, local_N, own_N)
        return grad_NS.mul_(grad_N[:, None]), None, None, None


def scores_to_gradient(scores_NS: Tensor, normalizer_N: Tensor, local_N: Tensor, own_N: Tensor) -> Tensor:
    """The gradient of each target's cross-entropy by the scores, in their memory."""
    grad_NS = scores_NS.sub_(normalizer_N[:, None]).exp_()
    return grad_NS.scatter_add_(1, local_N[:, None], -own_N[:, None].to(grad_NS.dtype))
