"""Ranks of targets, and the usual means over them.

Shapes: ``B`` rows, ``V`` columns of the catalogue (``num_items + 1``, column 0 is the padding), ``P`` listed pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from recparallel.errors import ConfigError, DataError
from recparallel.tensor_parallel import ALONE, TensorRanks
from recparallel.tensor_parallel.table import own_rows


def ranks_of_targets(
    scores_BV: Tensor,
    target_B: Tensor,
    listed_rows: Tensor,
    listed_cols: Tensor,
    *,
    among: bool = False,
    num_columns: int | None = None,
    ranks: TensorRanks = ALONE,
) -> Tensor:
    """Rank every row's target among all items but those listed for the row, or among these alone.

    Column 0 takes no part, the target always does, even if it is listed. A target ranks after all items with the same
    score, so a model that scores everything alike is not rewarded.

    Args:
        scores_BV: scores, higher is better, any floating type; the other tensors are on its device.
        target_B: target items, int64; 0 marks a row without a user (the filling of a last batch).
        listed_rows: row of each listed pair, int64, shape ``(P,)``.
        listed_cols: item of each listed pair, int64, shape ``(P,)``.
        among: the listed items are the target's rivals, not what is left out of them.
        num_columns: V, where ``ranks`` share the columns.
        ranks: each of which has the scores of its share of the columns; all call, and all get the result.

    Returns:
        ``ranks_B``: int64, 1 is best; 0 in rows without a user, which the means below refuse: leave them out by
        ``valid_B``.

    Raises:
        DataError: a score is NaN (outside column 0 and rows without a user), or a target is no column.
    """
    real_B = target_B != 0
    columns = scores_BV.shape[1] if num_columns is None else num_columns
    outside_B = (target_B < 0) | (target_B >= columns)
    if bool(outside_B.any()):
        raise DataError(f"targets must be items from 1 to {columns - 1}, got {target_B[outside_B].tolist()}")
    first, _ = ranks.share(columns)
    padding = slice(0, 1 if first == 0 else 0)
    nan_BV = scores_BV.isnan() & real_B[:, None]
    nan_BV[:, padding] = False
    found = ranks.all_reduce(nan_BV.sum())
    if bool(found):
        where = [
            f"the first one in row {row} for item {first + column}" for row, column in nan_BV.nonzero()[:1].tolist()
        ]
        raise DataError(f"{int(found)} scores are NaN, {(where or ['all on other ranks'])[0]}: nothing to rank")
    target_col_B, own_B = own_rows(target_B, columns, ranks)
    listed_col, own_listed = own_rows(listed_cols, columns, ranks)
    score_B = ranks.all_reduce(scores_BV.gather(1, target_col_B[:, None]).squeeze(1).masked_fill(~own_B, 0.0))
    ahead_BV = scores_BV >= score_B[:, None]
    ahead_BV[:, padding] = False
    listed_BV = torch.zeros_like(ahead_BV)
    listed_BV[listed_rows[own_listed], listed_col[own_listed]] = True
    ahead_BV &= listed_BV if among else ~listed_BV
    ahead_BV[own_B.nonzero().squeeze(1), target_col_B[own_B]] = False
    return (1 + ranks.all_reduce(ahead_BV.sum(dim=1))) * real_B


def hit_rate(ranks: Tensor, k: int) -> float:
    """HR@k: share of the targets that are among the first ``k``.

    Args:
        ranks: 1-based, any integer type, at least one.
        k: length of the slate.

    Raises:
        DataError: there are no ranks, or one is below 1.
        ConfigError: ``k`` is less than 1.
    """
    _check(ranks, k)
    return (ranks <= k).double().mean().item()


def ndcg(ranks: Tensor, k: int) -> float:
    """NDCG@k with one relevant item: mean of ``1 / log2(rank + 1)``, 0 behind ``k`` (Järvelin & Kekäläinen, TOIS 2002).

    Arguments and errors as in :func:`hit_rate`.
    """
    _check(ranks, k)
    return torch.where(ranks <= k, 1 / torch.log2(ranks.double() + 1), 0.0).mean().item()


def reciprocal_rank(ranks: Tensor) -> float:
    """MRR: mean of ``1 / rank`` over the whole ranking. Errors as in :func:`hit_rate`."""
    _check(ranks, 1)
    return (1 / ranks.double()).mean().item()


def summarize(ranks: Tensor, *, ks: Sequence[int] = (10,)) -> dict[str, float]:
    """``HR@k`` and ``NDCG@k`` for every ``k``, and ``MRR``. Errors as in :func:`hit_rate`."""
    summary = {}
    for k in ks:
        summary[f"HR@{k}"] = hit_rate(ranks, k)
        summary[f"NDCG@{k}"] = ndcg(ranks, k)
    return {**summary, "MRR": reciprocal_rank(ranks)}


def _check(ranks: Tensor, k: int) -> None:
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if ranks.numel() == 0:
        raise DataError("there are no ranks to take a mean of")
    if int(ranks.min()) < 1:
        raise DataError(f"ranks start at 1, got {int(ranks.min())}; leave out the rows without a user (valid_B)")
