"""What is called not inferior: what is as good, and nothing that is worse by the margin."""

from functools import partial

import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.errors import ConfigError, DataError
from recparallel.evaluation.comparison import compare_paired, ndcg_gains
from recparallel.evaluation.metrics import ndcg

SEEDS, USERS = 3, 2000
compare_paired = partial(compare_paired, resamples=1000)


def gains(seed, *, quality=1.0):
    """Of users of whom each finds more or less, the same under every seed but for chance."""
    random = torch.Generator().manual_seed(seed)
    taste = torch.rand(USERS, generator=torch.Generator().manual_seed(1)) < 0.3
    return quality * taste * (0.5 + 0.1 * torch.rand(SEEDS, USERS, generator=random))


@given(ranks=st.lists(st.integers(1, 40), min_size=1), k=st.integers(1, 20))
def test_the_mean_of_gains_is_ndcg(ranks, k):
    ranks = torch.tensor(ranks)
    assert ndcg_gains(ranks, k).mean().item() == pytest.approx(ndcg(ranks, k))


def test_a_side_that_is_as_good_is_not_inferior_and_one_that_is_5_percent_worse_is():
    base = gains(0)
    same, worse = compare_paired(gains(11), base), compare_paired(gains(11, quality=0.95), base)
    assert same.is_not_inferior
    assert same.low < same.change < same.high
    assert not worse.is_not_inferior
    assert worse.change == pytest.approx(-0.05, abs=0.01)


def test_few_users_prove_nothing():
    """The same sides, but too uncertain."""
    random = torch.Generator().manual_seed(0)
    ours, theirs = torch.rand(3, 20, generator=random), torch.rand(3, 20, generator=random)
    found = compare_paired(ours, theirs)
    assert not found.is_not_inferior
    assert found.high - found.low > 0.1


def test_pairing_users_tells_what_their_differences_hide():
    """Users differ by far more than the sides; shuffled against each other, nothing is known."""
    base = gains(0)
    paired = compare_paired(0.99 * base, base)
    shuffled = compare_paired(0.99 * base[:, torch.randperm(USERS, generator=torch.Generator().manual_seed(2))], base)
    assert (paired.low, paired.high) == pytest.approx((-0.01, -0.01), abs=1e-6)
    assert paired.is_not_inferior
    assert not shuffled.is_not_inferior


def test_seeds_that_disagree_widen_the_interval():
    base = torch.ones(3, 50)
    found = compare_paired(torch.tensor([[0.8], [1.0], [1.2]]).expand(3, 50), base)
    assert found.low == pytest.approx(-0.2, abs=0.08)
    assert found.high == pytest.approx(0.2, abs=0.08)


@settings(max_examples=examples(20))
@given(scale=st.floats(0.1, 10.0), seed=st.integers(0, 5))
def test_only_the_ratio_counts(scale, seed):
    one = compare_paired(gains(seed), gains(9), resamples=600)
    other = compare_paired(scale * gains(seed), scale * gains(9), resamples=600)
    assert (one.change, one.low, one.high) == pytest.approx((other.change, other.low, other.high), abs=1e-5)


@pytest.mark.parametrize(
    ("ours", "base", "options", "error", "said"),
    [
        (torch.ones(3, 5), torch.ones(3, 4), {}, DataError, "(3, 5) against (3, 4)"),
        (torch.ones(5), torch.ones(5), {}, DataError, "(seeds, users)"),
        (torch.ones(0, 5), torch.ones(0, 5), {}, DataError, "(0, 5)"),
        (torch.ones(3, 5), torch.zeros(3, 5), {}, DataError, "nothing to lose"),
        (torch.ones(3, 5), torch.ones(3, 5), {"confidence": 1.0}, ConfigError, "got 1.0"),
        (torch.ones(3, 5), torch.ones(3, 5), {"margin": 0.0}, ConfigError, "0.0"),
        (torch.ones(3, 5), torch.ones(3, 5), {"resamples": 0}, ConfigError, "0"),
    ],
)
def test_bad_input_is_refused(ours, base, options, error, said):
    with pytest.raises(error) as raised:
        compare_paired(ours, base, **options)
    assert said in str(raised.value)
