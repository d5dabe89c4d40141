import numpy as np
import pytest

from recparallel.data.histories import Histories
from recparallel.data.splits.leave_one_out import leave_one_out
from recparallel.errors import ConfigError
from recparallel.evaluation.popularity import evaluate_popularity, popularity_scores


@pytest.fixture
def split():
    # Trained on: 1 1 1 | 2 2 | 3; items 4 to 7 are held out or never trained on.
    sequences = [[1, 2, 5, 6], [1, 2, 3, 7], [3, 1, 4, 2]]
    return leave_one_out(
        Histories(
            user_names=["a", "b", "c"],
            item_names=["", *"1234567"],
            sequences=[np.array(sequence, dtype=np.int64) for sequence in sequences],
        )
    )


def test_scores_count_the_training_part_alone(split):
    assert popularity_scores(split).tolist() == [0, 3, 2, 1, 0, 0, 0, 0]


def test_ranks_by_hand(split):
    # a: target 6, seen 1 2 5 -> ahead 3, ties 4 7 -> 4.  b: target 7, seen 1 2 3 -> ties 4 5 6 -> 4.
    # c: target 2, seen 3 1 4 -> 1.
    metrics = evaluate_popularity(split, "test", max_length=2, ks=(1, 4))
    assert metrics["HR@1"] == pytest.approx(1 / 3)
    assert metrics["HR@4"] == 1.0
    assert metrics["MRR"] == pytest.approx((1 / 4 + 1 / 4 + 1) / 3)
    # a: target 5, seen 1 2 -> ahead 3, ties 4 6 7 -> 5.  b: target 3, seen 1 2 -> 1.
    # c: target 4, seen 3 1 -> ahead 2, ties 5 6 7 -> 5.
    assert evaluate_popularity(split, "valid", max_length=2)["MRR"] == pytest.approx((1 / 5 + 1 + 1 / 5) / 3)


def test_chunks_do_not_change_the_result(split):
    results = [evaluate_popularity(split, "test", max_length=2, batch_size=size) for size in (1, 2, 3, 10)]
    assert results[0] == results[1] == results[2] == results[3]


def test_a_wrong_part_is_named(split):
    with pytest.raises(ConfigError, match="'train'"):
        evaluate_popularity(split, "train", max_length=2)
