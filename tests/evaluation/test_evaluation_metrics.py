import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.errors import ConfigError, DataError
from recparallel.evaluation.metrics import hit_rate, ndcg, ranks_of_targets, reciprocal_rank, summarize

NOTHING = torch.zeros(0, dtype=torch.int64)


def naive_rank(scores, target, seen):
    candidates = [item for item in range(1, len(scores)) if item == target or item not in seen]
    # Sorted by score; among equal scores the target comes last.
    order = sorted(candidates, key=lambda item: (-scores[item], item == target))
    return order.index(target) + 1


@st.composite
def batches(draw):
    num_columns = draw(st.integers(2, 8))
    num_rows = draw(st.integers(1, 4))
    # Few different values, so that ties are the rule; -inf is what a model may mask with.
    value = st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.0])
    scores = draw(
        st.lists(st.lists(value, min_size=num_columns, max_size=num_columns), min_size=num_rows, max_size=num_rows)
    )
    item = st.integers(1, num_columns - 1)
    targets = draw(st.lists(item, min_size=num_rows, max_size=num_rows))
    seen = draw(st.lists(st.lists(item, max_size=8), min_size=num_rows, max_size=num_rows))
    return scores, targets, seen


@settings(deadline=None)
@given(batch=batches())
def test_ranks_are_the_naive_ones(batch):
    scores, targets, seen = batch
    ranks = ranks_of_targets(
        torch.tensor(scores),
        torch.tensor(targets),
        torch.tensor([row for row, items in enumerate(seen) for _ in items], dtype=torch.int64),
        torch.tensor([item for items in seen for item in items], dtype=torch.int64),
    )
    assert ranks.tolist() == [naive_rank(*row) for row in zip(scores, targets, seen)]
    assert ranks.dtype == torch.int64


def test_ties_seen_items_and_padding_by_hand():
    scores_BV = torch.tensor([[9.0, 1.0, 1.0, 0.0, 5.0, 6.0]])
    # 4 is ahead, 5 is seen, 2 ties with the target 1, the padding's 9.0 counts for nothing.
    ranks = ranks_of_targets(scores_BV, torch.tensor([1]), torch.tensor([0]), torch.tensor([5]))
    assert ranks.tolist() == [3]


def test_a_target_that_was_seen_before_is_ranked():
    scores_BV = torch.tensor([[0.0, 1.0, 2.0]])
    ranks = ranks_of_targets(scores_BV, torch.tensor([1]), torch.tensor([0, 0]), torch.tensor([1, 2]))
    assert ranks.tolist() == [1]


def test_the_scores_are_left_as_they_were():
    scores_BV = torch.tensor([[0.0, 1.0, 2.0]])
    ranks_of_targets(scores_BV, torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))
    assert scores_BV.tolist() == [[0.0, 1.0, 2.0]]


def test_nan_is_an_error_that_says_where():
    scores_BV = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, math.nan]])
    with pytest.raises(DataError, match="1 scores are NaN, the first one in row 1 for item 2"):
        ranks_of_targets(scores_BV, torch.tensor([1, 1]), NOTHING, NOTHING)


def test_nan_does_not_matter_where_nothing_is_ranked():
    scores_BV = torch.tensor([[math.nan, 1.0, 2.0], [math.nan] * 3])
    assert ranks_of_targets(scores_BV, torch.tensor([2, 0]), NOTHING, NOTHING).tolist() == [1, 0]


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_outside_the_catalogue_is_an_error(target):
    with pytest.raises(DataError, match=rf"items from 1 to 2, got \[{target}\]"):
        ranks_of_targets(torch.zeros(1, 3), torch.tensor([target]), NOTHING, NOTHING)


def test_means_by_hand():
    ranks = torch.tensor([1, 3, 10, 11])
    assert hit_rate(ranks, 10) == 0.75
    assert hit_rate(ranks, 1) == 0.25
    assert ndcg(ranks, 10) == pytest.approx((1 + 0.5 + 1 / math.log2(11)) / 4)
    assert ndcg(ranks, 3) == pytest.approx(1.5 / 4)
    assert reciprocal_rank(ranks) == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11) / 4)
    assert summarize(ranks, ks=(3, 10)) == {
        "HR@3": hit_rate(ranks, 3),
        "NDCG@3": ndcg(ranks, 3),
        "HR@10": hit_rate(ranks, 10),
        "NDCG@10": ndcg(ranks, 10),
        "MRR": reciprocal_rank(ranks),
    }


@pytest.mark.parametrize("mean", [lambda ranks: hit_rate(ranks, 5), lambda ranks: ndcg(ranks, 5), reciprocal_rank])
def test_ranks_that_are_none_are_refused(mean):
    with pytest.raises(DataError, match=r"ranks start at 1, got 0.*valid_B"):
        mean(torch.tensor([1, 0]))
    with pytest.raises(DataError, match="no ranks"):
        mean(NOTHING)


@pytest.mark.parametrize("mean", [hit_rate, ndcg])
def test_k_must_be_positive(mean):
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        mean(torch.tensor([1]), 0)
