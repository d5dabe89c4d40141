"""Gradients that autograd adds up are those that DeepSpeed's bf16 optimizer would add up, to the last bit."""

import pytest
from training import Run, train_on_engine


def as_deepspeed_does(run):
    """Losses where every micro-batch's gradients are handed over by themselves."""
    from recparallel.engines import deepspeed as ours

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
    """Gradients that are not the optimizer's own, while micro-batches add up, and whether any is left when ours is off."""
    from training import make_engine, train

    engine = make_engine(run)
    optimizer, apart = engine.optimizer, []
    owned = {g.data_ptr() for group in optimizer.fp32_groups_gradients for g in group}
    step = optimizer.step

    def look(*args):
        apart.extend(p.grad.data_ptr() not in owned for p in engine.module.parameters())
        return step(*args)

    optimizer.step = look
    train(engine, run)
    engine.recparallel.remove()
    return any(apart), len(apart) > 0, [p.grad for p in engine.module.parameters() if p.grad is not None]


def test_there_is_one_of_each_gradient_and_none_is_left(pools):
    run = Run(tied=False, dtype="bf16", steps=2)
    assert pools[2].run(copies_of_gradients, run=run) == [(False, True, [])] * 2
