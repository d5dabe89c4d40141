"""Rows by speed, against brute force."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparallel.data_parallel.shares import rows_by_speed
from recparallel.errors import ConfigError


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), st.integers(0, 8))
def test_no_other_shares_are_done_sooner(seconds, more):
    total = len(seconds) + more
    rows = rows_by_speed(seconds, total)
    assert sum(rows) == total
    assert min(rows) >= 1
    best = min(
        max(n * s for n, s in zip(other, seconds))
        for other in product(range(1, more + 2), repeat=len(seconds))
        if sum(other) == total
    )
    assert max(n * s for n, s in zip(rows, seconds)) == pytest.approx(best)


@pytest.mark.parametrize(("seconds", "total"), [([0.1, 0.1], 1), ([], 4), ([0.1, 0.0], 4)])
def test_what_cannot_be_shared(seconds, total):
    with pytest.raises(ConfigError, match="cannot be shared"):
        rows_by_speed(seconds, total)
