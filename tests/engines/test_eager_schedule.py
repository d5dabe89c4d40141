"""Transfers beside the computation change when things happen, and nothing else."""

import pytest
from training import Run, deepspeed_config, global_batches, make_engine, recommender, train, train_on_engine

from recparallel.engines.eager_schedule import EagerSchedule
from recparallel.errors import ConfigError

STAGES, MICRO_BATCHES = 3, 4


def instructions(stage):
    schedule = EagerSchedule(micro_batches=MICRO_BATCHES, stages=STAGES, stage_id=stage)
    return [
        (type(command).__name__, command.kwargs.get("buffer_id")) for step in schedule.steps() for command in step
    ], schedule.num_pipe_buffers()


def test_the_last_stage_runs_one_forward_then_one_backward():
    commands, buffers = instructions(2)
    assert buffers == 2
    once = ["TakeActivation", "LoadMicroBatch", "ForwardPass", "BackwardPass", "SendGradAside"]
    assert commands[0] == ("BeginTransfers", None)
    assert commands[1:-4] == [(name, m % 2) for m in range(MICRO_BATCHES) for name in once]
    end = ["ReduceTiedGrads", "ReduceGrads", "OptimizerStep", "FinishTransfers"]
    assert [name for name, _ in commands[-4:]] == end


def test_stages_in_front_run_ahead_and_keep_as_many_micro_batches():
    for stage, ahead in ((1, 3), (0, 4)):  # 2 (3 - stage) - 1, at most all four
        commands, buffers = instructions(stage)
        names = [name for name, _ in commands]
        assert names[: names.index("BackwardPass")].count("ForwardPass") == buffers == ahead


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stages", [2, 4])
def test_losses_are_those_of_deepspeeds_schedule_to_the_last_bit(pools, stages, dtype):
    tied = stages == 2  # DeepSpeed's bf16 optimizer cannot take a stage that holds nothing but a tied copy
    eager, blocking = (
        pools[4].run(
            train_on_engine, run=Run(stages=stages, dtype=dtype, tied=tied, dropout=0.2, steps=6, schedule=schedule)
        )
        for schedule in ("eager_1f1b", "1f1b")
    )
    assert eager == blocking


def in_steady_state(run, number):
    """Far more micro-batches than stages, so that every buffer is used again; then a step on DeepSpeed's own schedule, and
    one with recparallel again."""
    from deepspeed.runtime.pipe import schedule

    import recparallel
    from recparallel.engines.boundary_transfers import MOST_GRADIENTS, Outbox

    made = []
    real = Outbox.__init__
    Outbox.__init__ = lambda self, *args, **kwargs: (real(self, *args, **kwargs), made.append(self))[0]
    try:
        config = deepspeed_config(run, 1) | {"gradient_accumulation_steps": number}
        engine, *_ = recparallel.initialize(model=recommender(run), config=config)
    finally:
        Outbox.__init__ = real
    most = [0]
    backward = engine._INSTRUCTION_MAP[schedule.BackwardPass]

    def watched(engine, **kwargs):
        backward(engine, **kwargs)
        most[0] = max(most[0], sum(len(box._going) for box in made))

    engine._INSTRUCTION_MAP[schedule.BackwardPass] = watched
    micro_batches = [batch for step in global_batches(2 * number // 4) for batch in step]
    losses = [engine.train_batch(iter(micro_batches[k * number :][:number])).item() for k in range(2)]
    ahead = 2 * (run.stages - engine.stage_id) - 1
    assert most[0] <= ahead + MOST_GRADIENTS
    engine.recparallel.remove()
    losses.append(engine.train_batch(iter(micro_batches[:number])).item())
    recparallel.attach(engine)
    losses.append(engine.train_batch(iter(micro_batches[:number])).item())
    return losses


def test_buffers_are_used_again_and_nothing_is_kept_for_longer_than_it_is_needed(pools):
    eager, blocking = (
        pools[4].run(in_steady_state, run=Run(stages=4, tied=False, schedule=schedule), number=16)
        for schedule in ("eager_1f1b", "1f1b")
    )
    assert eager == blocking


def attached(run, section, dynamic_shape):
    """What ``attach`` says of a pipeline that was built for ``run``."""
    import recparallel

    engine = make_engine(run)
    engine.recparallel.remove()
    engine.dynamic_shape = dynamic_shape
    try:
        recparallel.attach(engine, {"recparallel": section})
    except ConfigError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize(
    ("section", "dynamic_shape", "said"),
    [
        ({"schedule": "1f1b"}, False, "schedule is '1f1b', but this pipeline was built for 'eager_1f1b'"),
        ({}, True, "needs micro-batches of one shape, the pipeline has dynamic_shape; use '1f1b'"),
        ({"schedule": "eager_1f1b"}, False, "accepted"),
    ],
)
def test_a_pipeline_that_cannot_run_the_schedule_is_refused(pools, section, dynamic_shape, said):
    for answer in pools[2].run(attached, run=Run(), section=section, dynamic_shape=dynamic_shape):
        assert said in answer


def with_evaluation(run):
    engine = make_engine(run)
    losses = [train(engine, Run(**{**vars(run), "steps": 2}))]
    (inputs, labels), *_ = global_batches(1)[0]
    evaluated = engine.eval_batch(iter([(inputs[:1, :5], labels[:1, :5])]), num_micro_batches=1).item()
    losses.append(train(engine, run, first=2))
    programs = [type(engine._train_schedule()).__name__]
    engine.recparallel.remove()
    return losses, evaluated, [*programs, type(engine._train_schedule()).__name__]


def test_an_evaluation_of_another_shape_comes_in_between(pools):
    eager, blocking = (
        pools[2].run(with_evaluation, run=Run(steps=4, schedule=schedule)) for schedule in ("eager_1f1b", "1f1b")
    )
    assert [rank[:2] for rank in eager] == [rank[:2] for rank in blocking]
    assert eager[0][2] == ["EagerSchedule", "TrainSchedule"]
    assert blocking[0][2] == ["TrainSchedule", "TrainSchedule"]


def one_that_fails(run):
    import torch.distributed as dist

    engine = make_engine(run)
    if dist.get_rank() == 1:
        real = engine.module.forward

        def fails(x):
            fails.calls += 1
            if fails.calls == 3:
                raise ValueError("third micro-batch")
            return real(x)

        fails.calls = 0
        engine.module.forward = fails
    train(engine, run)


def test_a_stage_that_fails_in_mid_step_is_named(pools):
    with pytest.raises(AssertionError, match="first error, on rank 1"):
        pools[2].run(one_that_fails, run=Run(steps=1))
    assert pools[2].run(train_on_engine, run=Run(steps=1))  # new workers, nothing left over


def test_a_schedule_that_does_not_exist_is_refused_with_those_that_do():
    import recparallel

    with pytest.raises(ConfigError, match=r"recparallel\.schedule: .*'1f1b' or 'eager_1f1b' \(given 'gpipe'\)"):
        recparallel.initialize(model=recommender(Run()), config=deepspeed_config(Run(schedule="gpipe"), 1))


def losses_and_bytes(run):
    """Losses, and the bytes that this rank sent to other stages in a step."""
    from recparallel import events

    sent = []
    with events.subscribe(lambda event: sent.append(event.num_bytes) if isinstance(event, events.Transfer) else None):
        losses = train_on_engine(run)
    return losses, sum(sent) / run.steps


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_half_the_bytes_cross_and_losses_stay_near(pools, wire):
    """Rounding to 8 bits moves the loss by some thousandths, to 11 bits by less; two replicas of two stages, clipping active."""
    whole = pools[4].run(losses_and_bytes, run=Run(steps=12))
    rounded = pools[4].run(losses_and_bytes, run=Run(steps=12, wire=wire))
    tolerance = {"bf16": 4e-3, "fp16": 5e-4}[wire]
    for (expected, before), (found, after) in zip(whole, rounded):
        assert found != expected
        assert found == pytest.approx(expected, rel=tolerance)
        assert after / before == pytest.approx(0.5, abs=0.01)
