"""Global temporal: nothing that happened after one moment is trained on, and only what happened after it is predicted."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recparallel.data.histories import Histories, in_parts
from recparallel.data.splits.base import NONE, Split
from recparallel.errors import ConfigError, DataError


def temporal(histories: Histories, *, share: float | None = None) -> Split:
    """Cut all histories at the same two moments.

    Steps:
        1. The last ``share`` of all events, by time, is for testing, the ``share`` before it for validation; events of one
           moment are never parted.
        2. A user's target in a part is the first event there, if any came before it.

    Args:
        histories: with timestamps that mean the same for all users.
        share: of all events, in (0, 0.5), for each of the two parts; 0.1 if it is None.

    Raises:
        ConfigError: ``share`` is out of range.
        DataError: there are no timestamps, or all are the same.

    Source: Ji et al., "A critical study on data leakage in recommender system offline evaluation", TOIS 2023.
    """
    share = check_share(0.1 if share is None else share)
    times = histories.timestamps
    if times is None:
        raise DataError("a temporal split needs timestamps; these histories have none, use leave_one_out or ratio")
    lengths_U = histories.lengths
    count = int(lengths_U.sum())
    earliest, first_valid, first_test = (
        _nth(times, rank) for rank in (0, *(int(count * (1 - p * share)) for p in (2, 1)))
    )
    if earliest == first_valid or first_valid == first_test:
        raise DataError(
            "a temporal split finds no two moments to cut at: too many events have the same timestamp, or the timestamps "
            "are positions; use leave_one_out or ratio"
        )
    valid_U = np.fromiter((np.searchsorted(at, first_valid) for at in times), dtype=np.int64, count=len(lengths_U))
    test_U = np.fromiter((np.searchsorted(at, first_test) for at in times), dtype=np.int64, count=len(lengths_U))
    return Split(
        name=f"global temporal, the last {share:g} of all events for test, a user's first one as target",
        histories=histories,
        train_ends_U=valid_U,
        targets={
            "valid": np.where((valid_U < test_U) & (valid_U > 0), valid_U, NONE),
            "test": np.where((test_U < lengths_U) & (test_U > 0), test_U, NONE),
        },
    )


def _nth(times: Sequence[NDArray[np.int64]], rank: int) -> int:
    """The timestamp that ``rank`` others come before, in the order of all; by halving, without them all in memory."""
    low = min(int(at[0]) for at in times if len(at))
    high = max(int(at[-1]) for at in times if len(at))
    while low < high:
        middle = (low + high) // 2
        if sum(int((part <= middle).sum()) for part in in_parts(times)) > rank:
            high = middle
        else:
            low = middle + 1
    return low


def check_share(share: float) -> float:
    """Raise unless it is one that leaves something to train on.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < share < 0.5:
        raise ConfigError(f"share must lie between 0 and 0.5, both excluded, got {share}")
    return share
