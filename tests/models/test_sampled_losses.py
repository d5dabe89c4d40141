"""Losses against few items: what their docstrings say, number by number."""

import math

import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.errors import ConfigError
from recparallel.models.losses.gbce import GBCE
from recparallel.models.losses.in_batch_softmax import InBatchSoftmax

D, ITEMS = 4, 12
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
targets_of = st.lists(st.integers(1, ITEMS), min_size=1, max_size=8)


def made(targets):
    """Hidden states, a table, targets, and all scores as numbers."""
    generator = torch.Generator().manual_seed(len(targets))
    hidden, table = torch.randn(len(targets), D, generator=generator), torch.randn(ITEMS + 1, D, generator=generator)
    return hidden, table, torch.tensor(targets), (hidden @ table.T).tolist()


@settings(max_examples=examples(50), deadline=None)
@given(targets=targets_of, counts=st.none() | st.lists(st.integers(0, 50), min_size=ITEMS + 1, max_size=ITEMS + 1))
def test_in_batch_softmax_is_the_naive_loop(targets, counts):
    hidden, table, rows, scores = made(targets)
    weights = [0.0] + [1.0 if counts is None else max(count, 1.0) for count in (counts or [1] * (ITEMS + 1))[1:]]
    q = [weight / sum(weights) for weight in weights]
    expected = 0.0
    for own, target in zip(scores, targets):
        others = [own[j] - math.log(1 - (1 - q[j]) ** (len(targets) - 1)) for j in {*targets} - {target}]
        terms = [own[target], *others]
        expected += math.log(sum(math.exp(term) for term in terms)) - own[target]
    loss = InBatchSoftmax(num_items=ITEMS, item_counts=None if counts is None else torch.tensor(counts))
    torch.testing.assert_close(loss.total(hidden, table, rows), torch.tensor(expected), **CLOSE)


def test_in_batch_softmax_estimates_the_sum_over_the_other_items():
    """Over many micro-batches by popularity, exponentials of the corrected scores add up to those of all items but the target."""
    torch.manual_seed(0)
    target = 3
    loss = InBatchSoftmax(num_items=ITEMS, item_counts=torch.arange(ITEMS + 1))
    scores, sums = torch.randn(ITEMS + 1), []
    for _ in range(4000):
        others = torch.multinomial(loss.q, 4, replacement=True)
        items, log_expected = loss.candidates(torch.cat([others, torch.tensor([target])]))
        sums.append((scores[items] - log_expected).exp()[items != target].sum())
    expected = scores[1:].exp().sum() - scores[target].exp()
    assert torch.stack(sums).mean().item() == pytest.approx(expected.item(), rel=0.05)


@settings(max_examples=examples(50), deadline=None)
@given(
    targets=targets_of,
    negatives=st.lists(st.integers(1, ITEMS), min_size=1, max_size=8),
    calibration=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_gbce_is_the_naive_loop(targets, negatives, calibration):
    hidden, table, rows, scores = made(targets)
    loss = GBCE(num_items=ITEMS, num_negatives=len(negatives), calibration=calibration)
    loss.sample = lambda: torch.tensor(negatives)
    share = len(negatives) / (ITEMS - 1)
    beta = share * (calibration * (1 - 1 / share) + 1 / share)

    def minus_log_sigmoid(x):
        return math.log(1 + math.exp(-x))

    expected = 0.0
    for own, target in zip(scores, targets):
        against = sum(minus_log_sigmoid(-own[j]) for j in negatives if j != target)
        expected += (beta * minus_log_sigmoid(own[target]) + against) / (len(negatives) + 1)
    torch.testing.assert_close(loss.total(hidden, table, rows), torch.tensor(expected), **CLOSE)


def test_without_calibration_the_target_counts_once_and_with_it_by_its_share():
    assert GBCE(num_items=101, num_negatives=10, calibration=0.0).beta == pytest.approx(1.0)
    assert GBCE(num_items=101, num_negatives=10, calibration=1.0).beta == pytest.approx(0.1)


def test_with_every_item_a_candidate_the_corrections_vanish():
    hidden, table, rows, _ = made(list(range(1, ITEMS + 1)))
    popular = InBatchSoftmax(num_items=ITEMS)
    popular.q = torch.full((ITEMS + 1,), 1.0 - 1e-12).double()  # each is certain to be there
    naive = torch.logsumexp((hidden @ table.T)[:, 1:], 1) - (hidden * table[rows]).sum(1)
    torch.testing.assert_close(popular.total(hidden, table, rows), naive.sum(), **CLOSE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_items": ITEMS, "calibration": 1.5}, "calibration must lie in"),
        ({"num_items": 1}, "sets an item against others"),
        ({"num_items": ITEMS, "num_negatives": 0}, "num_negatives must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        GBCE(**options)
