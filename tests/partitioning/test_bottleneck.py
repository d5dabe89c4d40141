import math
import random
import sys
from itertools import combinations

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.errors import PartitionError
from recparallel.partitioning.bottleneck import minimize_bottleneck
from recparallel.plan import LayerCost, Profile

EPSILON = sys.float_info.epsilon

# Forward and backward apart, both with many zeros and many equal values.
integers = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8)
floats = st.lists(st.tuples(st.floats(0, 1e3), st.sampled_from([0.0, 0.1, 1 / 3])), min_size=1, max_size=8)
stages_wanted = st.integers(1, 8)


def profile_of(seconds):
    """A profile of layers that take these (forward, backward) seconds."""
    layers = [
        LayerCost(name=f"layer {i}", forward_seconds=f, backward_seconds=b, num_parameters=0, parameter_bytes=0)
        for i, (f, b) in enumerate(seconds)
    ]
    return Profile(layers=tuple(layers), micro_batch=1, sequence_length=1)


def forward_only(seconds):
    return profile_of([(s, 0) for s in seconds])


def stage_sums(seconds, bounds):
    """Exactly rounded, and without the prefix sums of the solver."""
    return [math.fsum(map(sum, seconds[a:b])) for a, b in zip(bounds, bounds[1:])]


def rounding_of(seconds):
    """Prefix sums round once a layer, their differences once more, by at most half an epsilon of the total each."""
    return (len(seconds) + 1) * EPSILON * math.fsum(map(sum, seconds))


def brute_force(seconds, stages):
    """The smallest possible slowest stage, over every cut into non-empty stages."""
    n = len(seconds)
    cuts = ((0, *inner, n) for inner in combinations(range(1, n), stages - 1))
    return min(max(stage_sums(seconds, bounds)) for bounds in cuts)


def assert_is_a_cut(partition, n, stages):
    """Every layer on exactly one stage, in order, and no stage empty."""
    assert partition.num_stages == stages
    assert partition.bounds[0] == 0
    assert partition.bounds[-1] == n
    assert all(a < b for a, b in zip(partition.bounds, partition.bounds[1:]))
    held = [layer for a, b in zip(partition.bounds, partition.bounds[1:]) for layer in range(a, b)]
    assert held == list(range(n))


@settings(max_examples=examples(2000), deadline=None)
@given(seconds=integers, stages=stages_wanted)
def test_equals_brute_force_exactly_on_integers(seconds, stages):
    stages = min(stages, len(seconds))
    partition = minimize_bottleneck(profile_of(seconds), stages)
    assert_is_a_cut(partition, len(seconds), stages)
    assert max(stage_sums(seconds, partition.bounds)) == brute_force(seconds, stages)
    assert list(partition.stage_seconds) == stage_sums(seconds, partition.bounds)


@settings(max_examples=examples(1000), deadline=None)
@given(seconds=floats, stages=stages_wanted)
def test_equals_brute_force_up_to_rounding_on_floats(seconds, stages):
    stages = min(stages, len(seconds))
    partition = minimize_bottleneck(profile_of(seconds), stages)
    assert_is_a_cut(partition, len(seconds), stages)
    rounding = rounding_of(seconds)
    found = stage_sums(seconds, partition.bounds)
    assert max(found) <= brute_force(seconds, stages) + rounding
    assert list(partition.stage_seconds) == pytest.approx(found, rel=0, abs=rounding)


@settings(deadline=None)
@given(seconds=integers | floats)
def test_more_stages_never_make_the_slowest_one_slower(seconds):
    profile = profile_of(seconds)
    slowest = [max(minimize_bottleneck(profile, stages).stage_seconds) for stages in range(1, len(seconds) + 1)]
    assert slowest == sorted(slowest, reverse=True)
    assert slowest[-1] == pytest.approx(max(map(sum, seconds)), rel=0, abs=rounding_of(seconds))


@settings(deadline=None)
@given(seconds=integers | floats, stages=stages_wanted, exponent=st.integers(-20, 20))
def test_the_unit_of_time_does_not_change_the_cut(seconds, stages, exponent):
    """A power of two scales floats without rounding, so the cut must be the same to the last bound."""
    seconds = [(0.0 if f < 1e-200 else f, b) for f, b in seconds]  # not into the subnormals, which do round
    stages = min(stages, len(seconds))
    scaled = [(f * 2.0**exponent, b * 2.0**exponent) for f, b in seconds]
    ours, theirs = minimize_bottleneck(profile_of(seconds), stages), minimize_bottleneck(profile_of(scaled), stages)
    assert ours.bounds == theirs.bounds
    assert [s * 2.0**exponent for s in ours.stage_seconds] == list(theirs.stage_seconds)


@settings(deadline=None)
@given(seconds=integers | floats, stages=stages_wanted)
def test_every_rank_finds_the_same_cut_from_the_same_json(seconds, stages):
    stages = min(stages, len(seconds))
    profile = profile_of(seconds)
    received = Profile.model_validate_json(profile.model_dump_json())
    assert minimize_bottleneck(profile, stages) == minimize_bottleneck(received, stages)


@settings(deadline=None)
@given(seconds=integers, stages=stages_wanted, layer=st.integers(0, 7), extra=st.integers(1, 5))
def test_a_slower_layer_never_makes_the_slowest_stage_faster(seconds, stages, layer, extra):
    stages, layer = min(stages, len(seconds)), layer % len(seconds)
    slower = list(seconds)
    slower[layer] = (slower[layer][0] + extra, slower[layer][1])
    before, after = (max(minimize_bottleneck(profile_of(s), stages).stage_seconds) for s in (seconds, slower))
    assert before <= after <= before + extra


def test_backward_counts_as_much_as_forward():
    assert minimize_bottleneck(profile_of([(1, 0), (1, 0), (1, 0), (0, 3)]), 2).bounds == (0, 3, 4)
    assert minimize_bottleneck(profile_of([(0, 3), (1, 0), (1, 0), (1, 0)]), 2).bounds == (0, 1, 4)


def test_one_stage_holds_everything():
    partition = minimize_bottleneck(forward_only([1, 2, 3]), 1)
    assert (partition.bounds, partition.stage_seconds, partition.method) == ((0, 3), (6.0,), "profile")


def test_as_many_stages_as_layers_hold_one_each():
    assert minimize_bottleneck(forward_only([5, 0, 1, 0]), 4).bounds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("stages", range(1, 43))
def test_42_equal_layers_leave_no_stage_empty(stages):
    """DeepSpeed #5078: 42 layers over 16 stages, and the last two got none."""
    partition = minimize_bottleneck(forward_only([1] * 42), stages)
    assert_is_a_cut(partition, 42, stages)
    assert max(partition.stage_seconds) == math.ceil(42 / stages)


def test_5_equal_layers_on_4_stages():
    """DeepSpeed PR 4312: `partition_balanced([1]*5, 4)` gave `[0, 2, 4, 5, 5]`."""
    partition = minimize_bottleneck(forward_only([1] * 5), 4)
    assert_is_a_cut(partition, 5, 4)
    assert sorted(partition.stage_seconds) == [1, 1, 1, 2]


def test_layers_that_take_no_time_are_spread_all_the_same():
    for n, stages in ((1, 1), (5, 4), (42, 16)):
        assert_is_a_cut(minimize_bottleneck(forward_only([0] * n), stages), n, stages)


def test_a_heavy_head_stands_alone():
    """The head of a recommender: it bounds the pipeline, so nothing may be put beside it."""
    partition = minimize_bottleneck(forward_only([1, *[10] * 8, 1, 100]), 4)
    assert partition.bounds[-2:] == (10, 11)
    assert max(partition.stage_seconds) == 100


def test_a_thousand_layers_on_256_stages():
    generator = random.Random(0)
    seconds = [generator.randint(1, 100) for _ in range(1000)]  # whole numbers: sums are exact
    partition = minimize_bottleneck(forward_only(seconds), 256)
    assert_is_a_cut(partition, 1000, 256)
    slowest = max(partition.stage_seconds)
    assert slowest > max(seconds)  # so that no single layer bounds the pipeline
    # No cut is better: filled up as far as possible, stages that are faster than this one do not hold all layers.
    needed, filled = 1, 0
    for s in seconds:
        if filled + s < slowest:
            filled += s
        else:
            needed, filled = needed + 1, s
    assert needed > 256


@pytest.mark.parametrize("stages", [0, -1])
def test_no_stage_is_refused(stages):
    with pytest.raises(PartitionError, match=f"stages must be at least 1, got {stages}"):
        minimize_bottleneck(forward_only([1, 1]), stages)


def test_more_stages_than_layers_are_refused_with_the_layers():
    with pytest.raises(PartitionError) as raised:
        minimize_bottleneck(forward_only([1, 1]), 3)
    message = str(raised.value)
    assert message == "3 stages, but only 2 layers to put into them (layer 0, layer 1); at most 2 stages are possible"
