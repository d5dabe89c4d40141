import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cluster import Change, ClusterSpec
from benchmarks.cluster.placement import place_on_cores
from benchmarks.clusters import CLUSTERS


@settings(deadline=None)
@given(
    shares=st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=8),
    cores=st.integers(1, 4),
)
def test_no_core_gets_more_than_it_has_and_every_rank_gets_one(shares, cores):
    spec = ClusterSpec(
        name="any", nodes=len(shares), cpu=0.5, overrides={i: {"cpu": share} for i, share in enumerate(shares)}
    )
    placed = place_on_cores(spec, range(cores))
    if not placed:
        assert sum(shares) > cores / 2  # only a machine that is more than half full may be too small
        return
    assert sorted(placed) == list(range(len(shares)))
    for core in range(cores):
        assert sum(share for rank, share in enumerate(shares) if placed[rank] == core) <= 1 + 1e-9


@pytest.mark.parametrize("name", ["flat", "two_tier", "mixed", "fast", "eight"])
def test_every_cluster_of_ours_fits_two_cores(name):
    placed = place_on_cores(CLUSTERS[name], [4, 7])
    assert set(placed.values()) == {4, 7}


def test_a_rank_counts_with_the_largest_share_it_ever_has():
    spec = ClusterSpec(name="grows", nodes=3, cpu=0.5)
    assert place_on_cores(spec, [0, 1])
    assert not place_on_cores(
        spec.with_changes(Change(at_step=1, node=0, cpu=1.0), Change(at_step=1, node=1, cpu=1.0)), [0, 1]
    )


@pytest.mark.parametrize("cpu", [None, 1.5])
def test_ranks_without_a_limit_or_with_several_cores_are_left_to_the_scheduler(cpu):
    assert place_on_cores(ClusterSpec(name="free", nodes=2, cpu=cpu), [0, 1]) == {}
