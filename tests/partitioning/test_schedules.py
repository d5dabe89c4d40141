"""The schedules are those that the engines run, and the simulator plays them as they are."""

from itertools import product

import pytest
from deepspeed.runtime.pipe import schedule as deepspeed
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.partitioning.dualpipev import dualpipev
from recparallel.partitioning.schedules import (
    BACKWARD,
    COMPUTE,
    FORWARD,
    TALK,
    eager_one_forward_one_backward,
    interleaved,
    one_forward_one_backward,
)
from recparallel.partitioning.simulator import StepCosts, simulate

SIZES = [(s, m) for s, m in product(range(1, 7), range(1, 14))]


def names_1f1b(program, stage):
    """Our instructions as DeepSpeed calls them, with the micro-batch of each computation."""
    words = []
    for code, first, second in program:
        if code == COMPUTE:
            words.append("ForwardPass" if first == FORWARD else "BackwardPass")
            continue
        (((kind, _, boundary), sends),) = second
        assert boundary == (stage if (kind == FORWARD) == sends else stage - 1)
        words.append(("Send" if sends else "Recv") + ("Activation" if kind == FORWARD else "Grad"))
    return words


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_1f1b_is_deepspeeds(stages, micro_batches):
    ours = one_forward_one_backward(stages, micro_batches)
    skipped = (deepspeed.LoadMicroBatch, deepspeed.ReduceTiedGrads, deepspeed.ReduceGrads, deepspeed.OptimizerStep)
    for stage, program in enumerate(ours):
        theirs = deepspeed.TrainSchedule(micro_batches=micro_batches, stages=stages, stage_id=stage)
        words = [type(c).__name__ for step in theirs.steps() for c in step if not isinstance(c, skipped)]
        assert names_1f1b(program, stage) == words


@pytest.mark.parametrize(("stages", "micro_batches"), [(s, m) for s, m in SIZES if m >= 2 * s])
def test_dualpipev_is_deepspeeds(stages, micro_batches):
    for stage, program in enumerate(dualpipev(stages, micro_batches)):
        theirs = deepspeed.DualPipeVSchedule(micro_batches=micro_batches, stages=stages, stage_id=stage)
        expected = []
        queued = []
        for command in (c for step in theirs.steps() for c in step):
            name = type(command).__name__
            if name == "CommitP2P":
                if queued:
                    expected.append(tuple(queued))
                queued = []
            elif name in ("ForwardPass", "BackwardPass"):
                phase, number = divmod(command.buffer_id, micro_batches)
                expected.append((name, phase))
            elif name.startswith(("Send", "Recv")):
                phase, number = divmod(command.buffer_id, micro_batches)
                queued.append((name, phase, number))
        assert [_named(instruction, stage, stages) for instruction in program] == expected


def _named(instruction, stage, stages):
    code, first, second = instruction
    if code == COMPUTE:
        return "ForwardPass" if first == FORWARD else "BackwardPass", int(second != stage)
    ends = []
    for (kind, number, boundary), sends in second:
        chunk = boundary if (kind == FORWARD) == sends else boundary + 1
        ends.append(
            (("Send" if sends else "Recv") + ("Activation" if kind == FORWARD else "Grad"), int(chunk != stage), number)
        )
    return tuple(ends)


schedules = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 8)).map(lambda a: (eager_one_forward_one_backward(*a), a[0], 1, a[1])),
    st.tuples(st.integers(1, 5), st.integers(1, 8)).map(lambda a: (one_forward_one_backward(*a), a[0], 1, a[1])),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)).map(
        lambda a: (interleaved(a[0], a[0] * a[1], a[2]), a[0], a[2], a[0] * a[1])
    ),
    st.tuples(st.integers(1, 4), st.integers(0, 3)).map(
        lambda a: (dualpipev(a[0], 2 * a[0] + a[1]), a[0], 2, 2 * a[0] + a[1])
    ),
)


@settings(max_examples=examples(400), deadline=None)
@given(schedules, st.data())
def test_every_schedule_computes_everything_once_and_ends(made, data):
    schedule, stages, per_stage, micro_batches = made
    chunks = stages * per_stage
    done = [(second, first) for program in schedule for code, first, second in program if code == COMPUTE]
    assert sorted(done) == sorted([(c, kind) for c in range(chunks) for kind in (FORWARD, BACKWARD)] * micro_batches)
    halves = [end for program in schedule for code, _, ends in program if code == TALK for end in ends]
    assert len(halves) == len(set(halves))
    assert {(t, True) for t, sends in halves if not sends} == {(t, True) for t, sends in halves if sends}
    seconds = st.lists(st.integers(0, 5), min_size=chunks, max_size=chunks)
    costs = StepCosts(data.draw(seconds), data.draw(seconds), data.draw(seconds))
    played = simulate(schedule, costs)
    work = [0.0] * stages
    for program, stage in zip(schedule, range(stages)):
        work[stage] = sum(
            (costs.forward, costs.backward)[first][second] for code, first, second in program if code == COMPUTE
        )
    assert list(played.busy) == work
    assert played.seconds >= max(work)
    assert played.seconds <= sum(work) + 2 * micro_batches * sum(costs.transfer) + 1e-9


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_equal_stages_take_what_the_textbook_says(stages, micro_batches):
    """(M + S - 1) forwards and backwards, without transfers."""
    schedule = one_forward_one_backward(stages, micro_batches)
    costs = StepCosts([1.0] * stages, [2.0] * stages, [0.0] * stages)
    assert simulate(schedule, costs).seconds == 3.0 * (micro_batches + stages - 1)


@pytest.mark.parametrize("virtual", [1, 2, 4])
def test_interleaving_shortens_the_bubble_by_the_number_of_chunks(virtual):
    stages, micro_batches = 4, 8
    chunks = stages * virtual
    costs = StepCosts([1 / virtual] * chunks, [2 / virtual] * chunks, [0.0] * chunks)
    seconds = simulate(interleaved(stages, micro_batches, virtual), costs).seconds
    assert seconds == pytest.approx(3 * micro_batches + 3 * (stages - 1) / virtual)


def test_blocking_transfers_hold_up_both_ends():
    """Two stages, one micro-batch: forward, transfer, forward, backward, transfer, backward."""
    costs = StepCosts([1.0, 2.0], [4.0, 8.0], [16.0])
    played = simulate(one_forward_one_backward(2, 1), costs)
    assert played.seconds == 1 + 16 + 2 + 8 + 16 + 4
    assert played.ends == (played.seconds, 1 + 16 + 2 + 8 + 16)


def test_one_tensor_at_a_time_crosses_a_boundary_in_each_direction():
    """Two forwards are ready at 1 s and 2 s; the second waits for the first, their gradients meet nothing."""
    costs = StepCosts([1.0, 0.0], [0.0, 0.0], [16.0])
    assert simulate(eager_one_forward_one_backward(2, 2), costs).seconds == 1 + 16 + 16 + 16


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_transfers_that_are_shorter_than_a_stage_cost_the_eager_schedule_nothing_but_the_first_and_last(stages):
    costs = StepCosts([1.0] * stages, [2.0] * stages, [0.75] * (stages - 1))
    alone = StepCosts([1.0] * stages, [2.0] * stages, [0.0] * (stages - 1))
    once = 2 * 0.75 * (stages - 1)
    for micro_batches in (2 * stages, 8 * stages):
        eager = eager_one_forward_one_backward(stages, micro_batches)
        assert simulate(eager, costs).seconds <= simulate(eager, alone).seconds + once
        assert simulate(one_forward_one_backward(stages, micro_batches), costs).seconds > (
            simulate(eager, costs).seconds + 0.75 * micro_batches
        )


def test_what_follows_the_schedule_is_added_stage_by_stage():
    costs = StepCosts([1.0, 1.0], [1.0, 1.0], [0.0], update=[5.0, 7.0], ties=[((0, 1), 10.0)])
    assert simulate(one_forward_one_backward(2, 1), costs).seconds == 4 + 10 + 7


def test_a_schedule_that_never_ends_is_refused():
    stuck = [[(TALK, True, (((FORWARD, 0, 0), False),))], []]
    with pytest.raises(RuntimeError, match=r"stages \[0\] wait"):
        simulate(stuck, StepCosts([1.0], [1.0], [0.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interleaved(4, 6, 2), "multiple of 4 micro-batches, got 6"),
        (lambda: dualpipev(2, 3), "at least 4 micro-batches"),
    ],
)
def test_micro_batches_that_a_schedule_cannot_run_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
