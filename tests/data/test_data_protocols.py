import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.data.protocols import FULL, Protocol
from recparallel.errors import ConfigError

SEEN = np.array([3, 5, 3], dtype=np.int32)


def test_full_ranking_leaves_out_what_was_seen_or_nothing():
    assert FULL.listed(0, 7, SEEN, 10).tolist() == [3, 5, 3]
    assert Protocol(filter_seen=False).listed(0, 7, SEEN, 10).tolist() == []
    assert not FULL.among_listed


@settings(deadline=None)
@given(
    num_items=st.integers(8, 3000),
    num_sampled=st.integers(1, 200),
    filter_seen=st.booleans(),
    user=st.integers(0, 5),
    seen=st.lists(st.integers(1, 7), max_size=6),
)
def test_rivals_are_distinct_and_allowed(num_items, num_sampled, filter_seen, user, seen):
    protocol = Protocol(num_sampled, filter_seen)
    seen = np.array(seen, dtype=np.int64)
    rivals = protocol.listed(user, 8, seen, num_items)
    no_rivals = {8, *(seen.tolist() if filter_seen else [])}
    assert len({*rivals.tolist()}) == len(rivals) == min(num_sampled, num_items - len(no_rivals))
    assert not {*rivals.tolist()} & no_rivals
    assert ((rivals >= 1) & (rivals <= num_items)).all()
    assert protocol.listed(user, 8, seen, num_items).tolist() == rivals.tolist()


@pytest.mark.parametrize("num_items", [40, 4000])
def test_all_rivals_are_equally_likely(num_items):
    """Both ways to draw: mean and spread of what 400 users get, against those of a uniform draw without replacement."""
    protocol = Protocol(9)
    drawn = np.concatenate([protocol.listed(user, 1, SEEN, num_items) for user in range(400)])
    allowed = np.setdiff1d(np.arange(1, num_items + 1), [1, 3, 5])
    error = allowed.std() / np.sqrt(len(drawn))
    assert abs(drawn.mean() - allowed.mean()) < 4 * error
    assert abs(drawn.std() / allowed.std() - 1) < 0.05


def test_other_users_and_seeds_draw_others():
    draws = [Protocol(20, seed=seed).listed(user, 1, SEEN, 5000).tolist() for seed in (0, 1) for user in (0, 1)]
    assert len({tuple(draw) for draw in draws}) == 4


def test_names():
    assert Protocol.parse("full") == FULL
    assert Protocol.parse("sampled-100", filter_seen=False) == Protocol(100, False)
    assert str(FULL) == "full ranking over the catalogue, seen items filtered out, ties against the target"
    assert str(Protocol(100, False)) == "ranking among 100 sampled items, seen items left in, ties against the target"
    for wrong in ("sampled", "sampled-0", "sampled-x", "all"):
        with pytest.raises(ConfigError, match=f"ranking '{wrong}'; allowed are full, and sampled-N"):
            Protocol.parse(wrong)
