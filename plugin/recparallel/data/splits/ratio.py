"""By ratio: the first part of each history is for training, what follows for validation, the end for testing."""

import numpy as np

from recparallel.data.histories import Histories
from recparallel.data.splits.base import NONE, Split
from recparallel.data.splits.temporal import check_share


def ratio(histories: Histories, *, share: float | None = None) -> Split:
    """Give the last ``share`` of each history, rounded down, to testing, and as many items before them to validation.

    A part's target is its first item; a history so short that a part is empty has none, and one without room for both trains
    whole.

    Args:
        histories: any.
        share: of each history, in (0, 0.5), for each of the two parts; 0.1 if it is None.

    Raises:
        ConfigError: ``share`` is out of range.
    """
    share = check_share(0.1 if share is None else share)
    lengths_U = histories.lengths
    held_U = (lengths_U * share).astype(np.int64)
    test_U, valid_U = lengths_U - held_U, lengths_U - 2 * held_U
    none = (held_U == 0) | (valid_U < 1)
    return Split(
        name=f"by ratio, the last {share:g} of each history for test and as much for validation, its first item as target",
        histories=histories,
        train_ends_U=np.where(none, lengths_U, valid_U),
        targets={"valid": np.where(none, NONE, valid_U), "test": np.where(none, NONE, test_U)},
    )
