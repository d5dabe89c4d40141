"""Leave one out: the last item of a history is for testing, the one before it for validation, the rest for training."""

import numpy as np

from recparallel.data.histories import Histories
from recparallel.data.splits.base import Split
from recparallel.errors import DataError


def leave_one_out(histories: Histories, *, share: float | None = None) -> Split:
    """Split every history into train (all but the last two items), valid (second last) and test (last).

    Later events of some users are trained on before earlier ones of others are predicted: not what a service sees, but
    what most published results are of.

    Args:
        histories: of at least 3 items each.
        share: not used: one item is left out whatever the length.

    Raises:
        DataError: a history has fewer than three items.
    """
    lengths_U = histories.lengths
    short = np.flatnonzero(lengths_U < 3)
    if len(short):
        user = histories.user_names[int(short[0])]
        raise DataError(
            f"leave-one-out needs at least 3 items a user, but user {user!r} has {lengths_U[short[0]]}; "
            f"prepare the log with min_user_events=3 or more"
        )
    return Split(
        name="leave-one-out, last item as test",
        histories=histories,
        train_ends_U=lengths_U - 2,
        targets={"valid": lengths_U - 2, "test": lengths_U - 1},
    )
