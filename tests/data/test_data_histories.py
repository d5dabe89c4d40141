import numpy as np
import pytest

from recparallel.data import load_log
from recparallel.data.histories import Histories
from recparallel.errors import ConfigError, DataError


def named(histories):
    """User name to the names of its items: what the numbers mean."""
    return {
        user: [histories.item_names[item] for item in sequence]
        for user, sequence in zip(histories.user_names, histories.sequences)
    }


def test_order_is_time_then_file(make_log):
    rows = [("u", "c", 5), ("v", "z", 1), ("u", "b", 3), ("u", "a", 5), ("v", "a", 1), ("v", "m", 0), ("u", "x", 5)]
    histories = Histories.from_log(make_log(rows))
    assert named(histories) == {"u": ["b", "c", "a", "x"], "v": ["m", "z", "a"]}


def test_numbers_follow_the_names_and_zero_is_padding(make_log):
    rows = [("10", "100", 0), ("10", "9", 1), ("10", "20", 2), ("9", "9", 0), ("9", "100", 1), ("9", "20", 2)]
    histories = Histories.from_log(make_log(rows))
    assert histories.user_names == ["9", "10"]
    assert histories.item_names == ["", "9", "20", "100"]
    assert (histories.num_users, histories.num_items) == (2, 3)
    assert [sequence.tolist() for sequence in histories.sequences] == [[1, 3, 2], [3, 1, 2]]
    assert all(sequence.dtype == np.int64 for sequence in histories.sequences)


def test_numbers_do_not_depend_on_the_order_of_the_file(make_log):
    rows = [(user, item, i) for user in "ab" for i, item in enumerate("zyx")]
    one, other = Histories.from_log(make_log(rows)), Histories.from_log(make_log(rows[::-1]))
    assert one.item_names == other.item_names
    assert named(one) == named(other)


def test_exact_duplicates_are_dropped_but_repeats_are_kept(make_log, caplog):
    rows = [("u", "a", 1), ("u", "a", 1), ("u", "a", 2), ("u", "b", 3), ("u", "a", 1, 5.0)]
    histories = Histories.from_log(make_log(rows))
    assert named(histories) == {"u": ["a", "a", "a", "b"]}
    assert histories.num_duplicates == 1
    assert "1 exact duplicate" in caplog.text


def test_short_users_are_dropped_with_the_items_that_only_they_had(make_log, caplog):
    rows = [("u", "a", 0), ("u", "b", 1), ("u", "c", 2), ("v", "d", 0), ("v", "a", 1)]
    histories = Histories.from_log(make_log(rows))
    assert named(histories) == {"u": ["a", "b", "c"]}
    assert histories.item_names == ["", "a", "b", "c"]
    assert (histories.num_short_users, histories.num_short_events) == (1, 2)
    assert "1 users with fewer than 3" in caplog.text
    assert named(Histories.from_log(make_log(rows), min_events=2)) == {"u": ["a", "b", "c"], "v": ["d", "a"]}


def test_duplicates_do_not_help_a_user_to_stay(make_log):
    with pytest.raises(DataError, match=r"none of its 1 users has 3 events"):
        Histories.from_log(make_log([("u", "a", 0), ("u", "b", 1), ("u", "b", 1)]))


def test_min_events_must_be_positive(make_log):
    with pytest.raises(ConfigError, match="min_events"):
        Histories.from_log(make_log([("u", "a", 0)]), min_events=0)


def test_describe(make_log):
    rows = [("u", item, 0) for item in "abc"] + [("v", item, 0) for item in "abcd"] + [("w", "a", 0)] * 2
    assert Histories.from_log(make_log(rows)).describe() == {
        "num_users": 2,
        "num_items": 4,
        "num_interactions": 7,
        "shortest": 3,
        "longest": 4,
        "num_duplicates": 1,
        "num_short_users": 1,
        "num_short_events": 1,
    }


def test_a_real_file_of_sequences_comes_back_as_it_was(real_data):
    folder = real_data("ml-1m")
    histories = Histories.from_log(load_log("sequences", folder))
    lines = [line.split() for line in (folder / "sequences.txt").read_text().splitlines()]
    assert named(histories) == {user: items for user, *items in lines}
