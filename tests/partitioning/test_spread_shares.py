"""The head's rows go where there is time for them, and no stage waits for what comes after it."""

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.errors import PartitionError
from recparallel.partitioning import spread_head
from recparallel.partitioning.bottleneck import minimize_bottleneck
from recparallel.partitioning.spread_head import spread_last_layer
from recparallel.partitioning.spread_schedule import activations_kept, spread_head_order
from recparallel.plan import Device, LayerCost, LinkCost, Partition, Profile


def profile_of(seconds, *, speeds=(), micro_batches=16, busy=0.0):
    """``busy``: seconds of computing that a tensor takes on both sides of a link."""
    layers = tuple(
        LayerCost(name=str(i), forward_seconds=s / 3, backward_seconds=2 * s / 3, boundary_bytes=1)
        for i, s in enumerate(seconds)
    )
    devices = tuple(Device(relative_speed=speed) for speed in speeds)
    links = (LinkCost(bytes_per_second=1e9, busy_seconds_per_byte=busy),) if busy else ()
    sizes = {"micro_batch": 1, "sequence_length": 1, "num_micro_batches": micro_batches}
    return Profile(layers=layers, devices=devices, links=links, **sizes)


times = st.floats(0.1, 10.0)


@settings(max_examples=examples(100), deadline=None)
@given(
    others=st.lists(times, min_size=4, max_size=8),
    head=st.floats(0.1, 40.0),
    speeds=st.lists(times, min_size=3, max_size=3),
    micro_batches=st.integers(1, 12),
)
def test_stages_with_rows_are_level_and_the_last_one_shares_with_the_first(others, head, speeds, micro_batches):
    found = spread_last_layer(
        profile_of([*others, head], speeds=speeds, micro_batches=micro_batches), 3, minimize_bottleneck
    )
    assert found.num_layers == len(others) + 1
    (spread,) = found.spread
    assert spread.stages in ((0, 2), (0, 1, 2))
    shares = dict(zip(spread.stages, spread.shares))
    bounds = [*found.bounds[:-1], len(others)]
    own = [sum(others[a:b]) / speed for a, b, speed in zip(bounds, bounds[1:], speeds)]
    for stage, seconds in enumerate(found.stage_seconds):
        assert seconds == pytest.approx(own[stage] + shares.get(stage, 0.0) * head / speeds[stage])
    # Done at the same time, with what a stage waits for those in front of it: one forward and one backward of each.
    ends = [seconds + sum(own[:stage]) / micro_batches for stage, seconds in enumerate(found.stage_seconds)]
    with_rows = [ends[stage] for stage, share in shares.items() if share > 1e-6]
    assert with_rows == pytest.approx([max(with_rows)] * len(with_rows))
    assert all(ends[stage] >= max(with_rows) * (1 - 1e-5) for stage, share in shares.items() if share <= 1e-6)


@settings(max_examples=examples(60), deadline=None)
@given(
    others=st.lists(times, min_size=4, max_size=7),
    head=st.floats(0.1, 20.0),
    busy=st.floats(0.0, 0.2),
    micro_batches=st.integers(2, 10),
)
def test_no_other_cut_is_much_better(others, head, busy, micro_batches):
    """Against all cuts: moves of one layer may end beside the best one, but never behind where they began."""
    profile = profile_of([*others, head], micro_batches=micro_batches, busy=busy)
    found = spread_last_layer(profile, 3, minimize_bottleneck)
    cut = [
        spread_last_layer(profile, 3, lambda others, stages, cut=cut: Partition(bounds=cut, method="by hand"))
        for cut in [(0, a, b, len(others)) for a in range(1, len(others)) for b in range(a + 1, len(others))]
    ]
    assert found.step_seconds <= 1.1 * min(other.step_seconds for other in cut)


def test_fewer_stages_share_where_messages_cost_more():
    few, many = (
        spread_last_layer(profile_of([3.0] * 8 + [12.0], micro_batches=16, busy=busy), 4, minimize_bottleneck)
        for busy in (1.0, 0.0)
    )
    assert [len(found.spread[0].stages) for found in (few, many)] == [2, 4]
    assert few.step_seconds > many.step_seconds


def test_a_search_that_may_not_go_on_takes_the_cut_that_it_began_with(monkeypatch):
    profile = profile_of([1.0] * 9 + [3.0], micro_batches=16)
    whole = spread_last_layer(profile, 4, minimize_bottleneck)
    monkeypatch.setattr(spread_head, "MOST_WORK", 1)
    found = spread_last_layer(profile, 4, minimize_bottleneck)
    assert found.bounds[:-1] == minimize_bottleneck(profile_of([1.0] * 9, micro_batches=16), 4).bounds[:-1]
    assert found.spread[0].stages == (0, 3)
    assert whole.step_seconds < found.step_seconds


def test_a_share_of_the_head_must_fit_into_memory_too():
    layers = tuple(LayerCost(name=str(i), forward_seconds=1, backward_seconds=1, parameter_bytes=100) for i in range(4))
    head = LayerCost(name="head", forward_seconds=1, backward_seconds=1, parameter_bytes=2800)
    sizes = {"micro_batch": 1, "sequence_length": 1, "num_micro_batches": 4}

    def with_memory(*limits):
        devices = tuple(Device(memory_bytes=limit) for limit in limits)
        found = spread_last_layer(Profile(layers=(*layers, head), **sizes, devices=devices), 2, minimize_bottleneck)
        return found.bounds, dict(zip(found.spread[0].stages, found.spread[0].shares))

    devices = (Device(memory_bytes=1_500),) * 2
    assert minimize_bottleneck(Profile(layers=layers, **sizes, devices=devices), 2).bounds == (0, 2, 4)
    with pytest.raises(PartitionError, match="no cut into 2 stages fits"):
        with_memory(1_500, 1_500)
    # Time alone would give the first stage more than half of the head, for which there is no room.
    bounds, free = with_memory(10_000, 10_000)
    assert bounds == (0, 2, 5)
    room = (3_300 - 2 * layers[0].state_bytes) / head.state_bytes
    assert free[0] > room > 0.5
    bounds, tight = with_memory(3_300, 10_000)
    assert bounds == (0, 2, 5)
    assert tight == pytest.approx({0: room, 1: 1 - room})


@pytest.mark.parametrize("stages", [8, 16])
def test_many_stages_share_a_large_head_where_messages_are_free(stages):
    found = spread_last_layer(
        profile_of([1.0] * 2 * stages + [4.0 * stages], micro_batches=64), stages, minimize_bottleneck
    )
    assert len(found.spread[0].stages) > stages // 2


def test_too_few_layers_are_refused():
    with pytest.raises(
        PartitionError, match="4 stages that share the head need at least 4 layers in front of it, the model has 3"
    ):
        spread_last_layer(profile_of([1.0] * 4), 4, minimize_bottleneck)


@pytest.mark.parametrize(
    ("stages", "sharing"), [(2, (0, 1)), (3, (0, 1, 2)), (4, (0, 1, 2, 3)), (4, (0, 3)), (4, (1, 3)), (8, range(8))]
)
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 16])
def test_the_order_runs_to_its_end_and_keeps_no_more_than_it_says(stages, sharing, micro_batches):
    """Played with a message for each dependency, every stage comes to its end."""
    last = stages - 1
    programs = [
        list(spread_head_order(stage, stages, micro_batches, shares=stage in sharing)) for stage in range(stages)
    ]
    done, at = set(), [0] * stages
    moved = True
    while moved:
        moved = False
        for stage, program in enumerate(programs):
            while at[stage] < len(program):
                step, m = program[at[stage]]
                needed = {
                    "forward": {(stage - 1, "forward", m)} if stage else set(),
                    "scores": {(last, "forward", m)},
                    "merge": {(s, "scores", m) for s in sharing if s != last},
                    "gradient": {(last, "merge", m), (stage, "scores", m)},
                    "backward": {(s, "gradient", m) for s in sharing}
                    if stage == last
                    else {(stage + 1, "backward", m)},
                }[step]
                if step == "merge":
                    needed |= {(last, "scores", m)}
                if not needed <= done:
                    break
                done.add((stage, step, m))
                at[stage] += 1
                moved = True
                ran = [s for (who, s, _) in done if who == stage]
                assert ran.count("forward") - ran.count("backward") <= activations_kept(stage, stages)
    assert at == [len(program) for program in programs]
    for stage, program in enumerate(programs):
        kinds = {"forward", "backward"} | ({"scores", "gradient"} if stage in sharing else set())
        for kind in kinds | ({"merge"} if stage == last else set()):
            assert [m for step, m in program if step == kind] == list(range(micro_batches))
