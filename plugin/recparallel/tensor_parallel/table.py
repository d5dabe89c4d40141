"""A table whose rows are divided among the ranks: looking up, and scores of targets.

Shapes: N targets, V rows of the whole table, S rows of this rank's share.
"""

from collections.abc import Callable

from torch import Tensor, nn

from recparallel.tensor_parallel.exchange import sum_over_ranks
from recparallel.tensor_parallel.ranks import TensorRanks
from recparallel.tensor_parallel.sequence import sum_to_positions
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
    """Vectors of ``ids`` from a table of ``length`` rows that is divided among the ranks, the same on all, or of each rank's share
    of the positions.

    Args:
        vectors_of: looks up rows of this rank's share, counted from its first; linear in them.
    """
    if ranks.alone:
        return vectors_of(ids)
    local, own = own_rows(ids, length, ranks)
    add_up = sum_to_positions if ranks.sequence else sum_over_ranks
    return add_up(vectors_of(local).masked_fill(~own[..., None], 0.0), ranks)


def own_rows(ids: Tensor, length: int, ranks: TensorRanks) -> tuple[Tensor, Tensor]:
    """Rows of a table of ``length`` rows, counted from this rank's first, and which of them it has; others are row 0."""
    start, stop = ranks.share(length)
    own = (ids >= start) & (ids < stop)
    return (ids - start).masked_fill(~own, 0), own


def scores_of_targets(scores_NS: Tensor, local_N: Tensor, own_N: Tensor, ranks: TensorRanks) -> Tensor:
    """The score (N,) of each target, from the rank that has its row; without a gradient."""
    return ranks.all_reduce(scores_NS.gather(1, local_N[:, None]).squeeze(1).masked_fill(~own_N, 0.0))


def scores_to_gradient(scores_NS: Tensor, normalizer_N: Tensor, local_N: Tensor, own_N: Tensor) -> Tensor:
    """The gradient of each target's cross-entropy by the scores, in their memory."""
    grad_NS = scores_NS.sub_(normalizer_N[:, None]).exp_()
    return grad_NS.scatter_add_(1, local_N[:, None], -own_N[:, None].to(grad_NS.dtype))
