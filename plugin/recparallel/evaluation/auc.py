"""How often a positive scores above a negative."""

import torch
from torch import Tensor

from recparallel.errors import DataError


def auc(scores_N: Tensor, positive_N: Tensor) -> float:
    """Area under the ROC curve: the share of pairs of a positive and a negative in which the positive scores higher; a tie
    counts half (Mann & Whitney's U, divided by the number of pairs).

    Args:
        scores_N: any floating type, without NaN.
        positive_N: bool.

    Raises:
        DataError: there are no positives or no negatives, or a score is NaN.
    """
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if not positives or not negatives:
        raise DataError(f"AUC needs positives and negatives, got {positives} and {negatives}")
    if bool(scores_N.isnan().any()):
        raise DataError(f"{int(scores_N.isnan().sum())} scores are NaN: nothing to compare")
    _, level_N, counts = torch.unique(scores_N.double(), sorted=True, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    rank_N = (ends - (counts - 1) / 2)[level_N]  # the mean of the ranks that equal scores share, from 1
    return float((rank_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))
