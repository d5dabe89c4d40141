from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.data.histories import Histories
from recparallel.data.splits.leave_one_out import leave_one_out
from recparallel.errors import ConfigError, DataError


def make_split(sequences):
    sequences = [np.array(sequence, dtype=np.int64) for sequence in sequences]
    num_items = max(int(sequence.max()) for sequence in sequences)
    return leave_one_out(
        Histories(
            user_names=[f"u{i}" for i in range(len(sequences))],
            item_names=["", *(f"i{i}" for i in range(num_items))],
            sequences=sequences,
        )
    )


def rows_of(evaluation):
    return [{key: np.asarray(value).tolist() for key, value in row.items()} for row in evaluation]


def test_windows_are_cut_from_the_end_and_overlap_by_one():
    split = make_split([[1, 2, 3, 4, 5, 6, 90, 91], [7, 8, 9, 92, 93], [9, 94, 95]])
    windows = split.train_windows(2)
    assert windows[:]["items"] == [[1, 2], [2, 3, 4], [4, 5, 6], [7, 8, 9]]
    assert [window["items"] for window in windows] == windows[:]["items"]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=5).filter(lambda lengths: max(lengths) > 3),
    max_length=st.integers(1, 45),
)
def test_every_transition_is_trained_on_exactly_once(lengths, max_length):
    starts = np.cumsum([0, *lengths]) + 1
    sequences = [range(start, start + length) for start, length in zip(starts, lengths)]
    windows = make_split(sequences).train_windows(max_length)[:]["items"]
    assert all(2 <= len(window) <= max_length + 1 for window in windows)
    got = [pair for window in windows for pair in pairwise(window)]
    assert got == [pair for sequence in sequences for pair in pairwise(sequence[:-2])]
    assert len(windows) == sum(-(-(length - 3) // max_length) for length in lengths)  # no more windows than need be


def test_evaluation():
    split = make_split([[1, 2, 3, 4, 5], [5, 4, 3]])
    valid, test = split.evaluation("valid", 2), split.evaluation("test", 2)
    assert rows_of(valid) == [
        {"user": 0, "history": [2, 3], "target": 4, "listed": [1, 2, 3]},
        {"user": 1, "history": [5], "target": 4, "listed": [5]},
    ]
    assert rows_of(test) == [
        {"user": 0, "history": [3, 4], "target": 5, "listed": [1, 2, 3, 4]},
        {"user": 1, "history": [5, 4], "target": 3, "listed": [5, 4]},
    ]
    assert rows_of(valid[1::2]) == rows_of(valid)[1:]


def test_no_target_is_trained_on():
    split = make_split([[1, 2, 3, 4, 5]])
    assert [items.tolist() for items in split.train] == [[1, 2, 3]]
    assert split.train_windows(10)[:]["items"] == [[1, 2, 3]]


def test_a_history_that_is_too_short_is_named():
    with pytest.raises(DataError, match="at least 3 items a user, but user 'u1' has 2"):
        make_split([[1, 2, 3], [1, 2]])


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="nothing to train on"):
        make_split([[1, 2, 3]]).train_windows(5)


def test_wrong_arguments_are_named():
    split = make_split([[1, 2, 3, 4]])
    with pytest.raises(ConfigError, match="'valid' or 'test', got 'train'"):
        split.evaluation("train", 5)
    for call in (lambda: split.train_windows(0), lambda: split.evaluation("test", 0)):
        with pytest.raises(ConfigError, match="max_length must be at least 1, got 0"):
            call()
