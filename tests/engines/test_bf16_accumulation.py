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


def handed_over(run):
    """How often in a step gradients reach the optimizer's copy."""
    from training import make_engine, train

    engine = make_engine(run)
    optimizer, calls = engine.optimizer, []
    original = optimizer._update_hp_grad
    optimizer._update_hp_grad = lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1]
    train(engine, run)
    return len(calls) / len(list(engine.module.parameters())) / run.steps


def test_they_are_handed_over_once_a_step(pools):
    assert pools[2].run(handed_over, run=Run(tied=False, dtype="bf16", steps=2)) == [1.0, 1.0]
