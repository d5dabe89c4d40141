import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.data.histories import Histories
from recparallel.data.splits.base import NONE
from recparallel.data.splits.temporal import temporal
from recparallel.errors import ConfigError, DataError


def make_histories(times):
    times = [np.sort(np.array(at, dtype=np.int64)) for at in times]
    count = sum(map(len, times))
    items = np.split(np.arange(1, count + 1), np.cumsum([len(at) for at in times])[:-1])
    return Histories([f"u{i}" for i in range(len(times))], ["", *map(str, range(count))], items, times)


def test_by_hand():
    # 10 events; at 8 begins what is for validation, at 9 what is for testing.
    split = temporal(make_histories([[0, 1, 2, 8, 9], [3, 4, 9], [5], [9]]), share=0.2)
    assert split.train_ends_U.tolist() == [3, 2, 1, 0]
    assert split.targets["valid"].tolist() == [3, NONE, NONE, NONE]
    assert split.targets["test"].tolist() == [4, 2, NONE, NONE]
    assert [row["user"] for row in split.evaluation("test", 5)] == [0, 1]
    assert [row["target"] for row in split.evaluation("test", 5)] == [5, 8]
    assert [window["items"] for window in split.train_windows(5)] == [[1, 2, 3], [6, 7]]


@settings(deadline=None)
@given(
    times=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=20), min_size=2, max_size=8),
    share=st.floats(0.05, 0.4),
)
def test_nothing_is_trained_on_that_happened_after_what_is_predicted(times, share):
    histories = make_histories(times)
    try:
        split = temporal(histories, share=share)
    except DataError:
        return
    at = histories.timestamps
    trained = [int(time) for user, end in zip(at, split.train_ends_U) for time in user[:end]]
    for part, other in (("valid", "test"), ("test", None)):
        for user, target in zip(at, split.targets[part]):
            if target != NONE:
                assert max(trained) < user[target]
                assert all(user[:target] < user[target])  # the history ends before the moment, too
                if other is not None:
                    later = [u[t] for u, t in zip(at, split.targets[other]) if t != NONE]
                    assert all(user[target] < time for time in later)
    assert len(trained) <= len(np.concatenate(at)) * (1 - 2 * share) + 1


def test_what_cannot_be_cut_is_named():
    with pytest.raises(DataError, match="needs timestamps"):
        temporal(Histories(["u"], ["", "a"], [np.array([1, 1, 1])]))
    with pytest.raises(DataError, match="no two moments"):
        temporal(make_histories([[5, 5, 5, 5], [5, 5, 5]]))
    with pytest.raises(ConfigError, match=r"share must lie between 0 and 0\.5"):
        temporal(make_histories([[1, 2, 3]]), share=0.5)
