"""All ranks compute attention in the same way, the fastest one where that is asked for, and results stay."""

import pytest
from training import Run, deepspeed_config, global_batches, make_engine, recommender, reference, train

from recparallel.engines.attention_choice import fastest


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"sdpa": 1.0, "eager": 0.6}, "eager"),
        ({"sdpa": 1.0, "eager": 0.97}, "sdpa"),
        ({"sdpa": 1.0, "eager": 1.5}, "sdpa"),
        ({"flash_attention_2": 1.0, "sdpa": 0.9, "eager": 0.5}, "eager"),
    ],
)
def test_the_models_own_stays_unless_another_is_clearly_faster(seconds, chosen):
    assert fastest(seconds) == chosen


def trained(run):
    """Losses, and how the blocks of this stage compute attention."""
    engine = make_engine(run)
    blocks = [module for module in engine.module.modules() if type(module).__name__ == "LlamaAttention"]
    return train(engine, run), {block.config._attn_implementation for block in blocks}


@pytest.mark.parametrize("attention", ["fastest", "eager"])
def test_losses_are_those_of_the_models_own_attention(pools, attention):
    run = Run(stages=2, steps=5, attention=attention)
    answers = pools[4].run(trained, run=run)
    expected = reference(Run(stages=2, steps=5))
    found = set()
    for losses, names in answers:
        assert losses == pytest.approx(expected, rel=1e-5)
        found |= names
    assert len(found) == 1
    assert found <= ({"eager"} if attention == "eager" else {"eager", "sdpa"})


def refused(run, lacks_sample=()):
    """What each rank says; some have no micro-batch to time with."""
    import torch.distributed as dist

    import recparallel
    from recparallel.errors import RecParallelError

    sample = None if dist.get_rank() in lacks_sample else global_batches(1)[0][0]
    try:
        recparallel.initialize(model=recommender(run), config=deepspeed_config(run, 1), sample=sample)
    except RecParallelError as error:
        return str(error)
    return "accepted"


def test_a_rank_without_a_micro_batch_stops_all(pools):
    said = pools[2].run(refused, run=Run(attention="fastest"), lacks_sample=(1,))
    assert said[0] == said[1]
    assert "recparallel.attention 'fastest': rank 1 has no micro-batch to time it with" in said[0]


def test_a_model_with_one_attention_keeps_it(pools):
    gemma = Run(family="gemma2", attention="fastest")
    assert pools[2].run(refused, run=gemma, lacks_sample=(0, 1)) == ["accepted"] * 2  # nothing to time
    said = pools[2].run(refused, run=Run(family="gemma2", attention="sdpa"))
    assert all("which is not the attention of this model" in message for message in said)
