"""Gradients that autograd adds up are those that DeepSpeed's bf16 optimizer would add up, to the last bit."""

import math

import pytest
from training import Run, train_on_engine


def as_deepspeed_does(run):
    """Losses where every micro-batch's gradients are handed over by themselves."""
    from recparallel.engines import stage_bindings as ours

    original = ours.bind_native_accumulation
    ours.bind_native_accumulation = lambda engine, bindings: None
    try:
        return train_on_engine(run)
    finally:
        ours.bind_native_accumulation = original


@pytest.mark.parametrize("options", [{}, {"clip": 0.0}, {"dtype": "bf16_fp32_accumulation", "zero": 1}])
def test_losses_are_the_same_bits(pools, options):
    run = Run(**{"tied": False, "dtype": "bf16", "steps": 8, **options})
    assert pools[2].run(train_on_engine, run=run) == pools[2].run(as_deepspeed_does, run=run)


def copies_of_gradients(run):
    """Gradients that are not the optimizer's own behind each backward pass, how many were looked at, and what is left when ours is
    off."""
    from deepspeed.runtime.pipe.schedule import BackwardPass
    from training import make_engine, train

    engine = make_engine(run)
    owned = {g.data_ptr() for group in engine.optimizer.fp32_groups_gradients for g in group}
    backward, apart = engine._INSTRUCTION_MAP[BackwardPass], []

    def look(engine, **kwargs):
        backward(engine, **kwargs)
        apart.extend(p.grad.data_ptr() not in owned for p in engine.module.parameters())

    engine._INSTRUCTION_MAP[BackwardPass] = look
    train(engine, run)
    engine.recparallel.remove()
    return any(apart), len(apart) > 0, [p.grad for p in engine.module.parameters() if p.grad is not None]


def test_there_is_one_of_each_gradient_and_none_is_left(pools):
    run = Run(tied=False, dtype="bf16", steps=2)
    assert pools[2].run(copies_of_gradients, run=run) == [(False, True, [])] * 2


def with_gradients_dropped_and_one_bad_step(run, disturb):
    """Losses, with gradients set to None between steps and a step that overflows, or without either."""
    import torch
    from training import global_batches, make_engine

    engine = make_engine(run)
    losses = []
    for number, step in enumerate(global_batches(run.steps)):
        if disturb and number == 1:
            for parameter in engine.module.parameters():
                parameter.grad = None
        if number == 2 and engine.is_last_stage():
            next(iter(engine.module.parameters())).grad.fill_(torch.inf)  # the step is left out, on both sides
        losses.append(engine.train_batch(iter(step)).item())
    return losses


def test_a_step_that_overflows_leaves_nothing_and_dropped_gradients_come_back(pools):
    run = Run(tied=False, dtype="bf16", steps=5)
    disturbed, plain = (
        pools[2].run(with_gradients_dropped_and_one_bad_step, run=run, disturb=disturb) for disturb in (True, False)
    )
    assert disturbed == plain
    assert all(math.isfinite(loss) for losses in plain for loss in losses)
