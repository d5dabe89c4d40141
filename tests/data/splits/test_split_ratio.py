import numpy as np
import pytest

from recparallel.data.histories import Histories
from recparallel.data.splits.base import NONE
from recparallel.data.splits.ratio import ratio
from recparallel.errors import ConfigError, DataError


def make_histories(*lengths):
    return Histories(
        [f"u{i}" for i in range(len(lengths))],
        ["", *map(str, range(1, max(lengths) + 1))],
        [np.arange(1, length + 1) for length in lengths],
    )


def test_by_hand():
    split = ratio(make_histories(10, 25, 4), share=0.2)
    assert split.train_ends_U.tolist() == [6, 15, 4]
    assert split.targets["valid"].tolist() == [6, 15, NONE]
    assert split.targets["test"].tolist() == [8, 20, NONE]
    assert [row["target"] for row in split.evaluation("test", 3)] == [9, 21]
    assert [items.tolist()[-1] for items in split.train] == [6, 15, 4]


def test_a_tenth_if_nothing_is_said():
    assert ratio(make_histories(20)).train_ends_U.tolist() == [16]


def test_nobody_has_a_target():
    with pytest.raises(DataError, match="leaves no user with a target to test with"):
        ratio(make_histories(3, 4)).evaluation("test", 3)


@pytest.mark.parametrize("share", [0, 0.5, -1, float("nan")])
def test_shares_out_of_range(share):
    with pytest.raises(ConfigError, match="share must lie between"):
        ratio(make_histories(10), share=share)
