"""The head's rows go where there is time for them, and no stage waits for what comes after it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.errors import PartitionError
from recparallel.partitioning.bottleneck import minimize_bottleneck
from recparallel.partitioning.spread_head import spread_last_layer
from recparallel.partitioning.spread_schedule import activations_kept, spread_head_order
from recparallel.plan import Device, LayerCost, Profile


def profile_of(seconds, *, speeds=(), micro_batches=1000):
    layers = tuple(
        LayerCost(name=str(i), forward_seconds=s / 3, backward_seconds=2 * s / 3) for i, s in enumerate(seconds)
    )
    devices = tuple(Device(relative_speed=speed) for speed in speeds)
    return Profile(layers=layers, micro_batch=1, sequence_length=1, devices=devices, num_micro_batches=micro_batches)


times = st.floats(0.1, 10.0)


@settings(max_examples=300)
@given(
    others=st.lists(times, min_size=4, max_size=9),
    head=st.floats(0.0, 40.0),
    speeds=st.lists(times, min_size=4, max_size=4),
)
def test_shares_level_the_stages(others, head, speeds):
    """Stages with rows are all done at the same time, the others are not done before."""
    profile = profile_of(
        [*others, head], speeds=speeds, micro_batches=10**9
    )  # so many that filling and draining is nothing
    found = spread_last_layer(profile, 4, minimize_bottleneck)
    assert found.num_layers == len(others) + 1
    (spread,) = found.spread
    assert spread.stages == (0, 1, 2, 3)
    alone = minimize_bottleneck(profile_of(others, speeds=speeds), 4)
    assert found.bounds == (*alone.bounds[:-1], len(others) + 1)
    shares = spread.shares or (0.0,) * 4
    for share, own, before, speed in zip(shares, found.stage_seconds, alone.stage_seconds, speeds):
        assert own == pytest.approx(before + share * head / speed)
    level = max(found.stage_seconds)
    with_rows = [own for share, own in zip(shares, found.stage_seconds) if share > 1e-6]
    without = [own for share, own in zip(shares, found.stage_seconds) if share <= 1e-6]
    assert with_rows == pytest.approx([max(with_rows, default=0.0)] * len(with_rows))
    assert all(own >= max(with_rows, default=0.0) * (1 - 1e-5) for own in without)
    # All devices' work together, or a cut whose slowest stage has no time for rows.
    even = (sum(others) + head) / sum(speeds)
    assert level == pytest.approx(max(even, max(alone.stage_seconds)))


def test_with_few_micro_batches_later_stages_have_fewer_rows():
    """They wait for the first activation and, at the end, for the stages in front of them."""
    profile = profile_of([3.0] * 8 + [6.0], micro_batches=16)
    (spread,) = spread_last_layer(profile, 4, minimize_bottleneck).spread
    assert list(spread.shares) == sorted(spread.shares, reverse=True)
    # A stage waits for one forward and one backward, 6 s, of each stage in front of it: 0, 6, 12, 18 s of 16 micro-batches.
    assert [6 * share + 6 * stage / 16 for stage, share in enumerate(spread.shares)] == pytest.approx([2.0625] * 4)


def test_a_share_of_the_head_must_fit_into_memory_too():
    layers = tuple(LayerCost(name=str(i), forward_seconds=1, backward_seconds=1, parameter_bytes=100) for i in range(4))
    head = LayerCost(name="head", forward_seconds=1, backward_seconds=1, parameter_bytes=2800)
    devices = (Device(memory_bytes=1_500),) * 2
    sizes = {"micro_batch": 1, "sequence_length": 1, "num_micro_batches": 4, "devices": devices}
    assert minimize_bottleneck(Profile(layers=layers, **sizes), 2).bounds == (0, 2, 4)
    with pytest.raises(PartitionError, match="no cut into 2 stages fits"):
        spread_last_layer(Profile(layers=(*layers, head), **sizes), 2, minimize_bottleneck)


def test_too_few_layers_are_refused():
    with pytest.raises(
        PartitionError, match="4 stages that share the head need at least 4 layers in front of it, the model has 3"
    ):
        spread_last_layer(profile_of([1.0] * 4), 4, minimize_bottleneck)


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 16])
def test_the_order_runs_to_its_end_and_keeps_no_more_than_it_says(stages, micro_batches):
    """Played with a message for each dependency, every stage comes to its end."""
    programs = [list(spread_head_order(stage, stages, micro_batches)) for stage in range(stages)]
    last = stages - 1
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
                    "merge": {(s, "scores", m) for s in range(stages) if s != last},
                    "gradient": {(last, "merge", m), (stage, "scores", m)},
                    "backward": {(s, "gradient", m) for s in range(stages)}
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
    kinds = {"forward", "scores", "gradient", "backward"}
    for stage, program in enumerate(programs):
        for kind in kinds | ({"merge"} if stage == last else set()):
            assert [m for step, m in program if step == kind] == list(range(micro_batches))
