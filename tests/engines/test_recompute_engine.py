"""Stages whose layers recompute train as those that keep their activations do."""

from dataclasses import replace

import pytest
from training import Run, deepspeed_config, global_batches, make_engine, recommender, reference, train

RUN = Run(steps=3, dropout=0.2, tied=True)

KIB = 130
"""Of memory: less than the stages need with all their activations, more than without any."""


def train_recomputing(run, layers, bounds):
    """Losses, and how often each layer of this rank ran in a training step."""
    import recparallel

    cut = recparallel.Partition(bounds=bounds, method="by hand", recompute=layers)
    replicas_of_config = deepspeed_config(run, 1)
    engine, *_ = recparallel.initialize(
        model=recommender(run), config=replicas_of_config, sample=global_batches(1)[0][0], partition=cut
    )
    runs = {}
    for name, module in engine.module.named_children():
        if name.isdigit():
            module.register_forward_pre_hook(lambda module, inputs, n=int(name): runs.update({n: runs.get(n, 0) + 1}))
    losses = train(engine, replace(run, steps=1))
    counts = dict(runs)
    return losses + train(engine, run, first=1), counts


@pytest.mark.parametrize("schedule", ["eager_1f1b", "1f1b"])
@pytest.mark.parametrize(("dtype", "zero"), [("fp32", 0), ("fp32", 1)])
def test_losses_are_those_of_one_process(pools, schedule, dtype, zero):
    run = replace(RUN, schedule=schedule, zero=zero)
    everyone = pools[2].run(train_recomputing, run=run, layers=(1, 4), bounds=(0, 3, 6))
    for losses, _ in everyone:
        assert losses == pytest.approx(reference(run), rel=1e-5)
    runs = {layer: count for _, counts in everyone for layer, count in counts.items()}
    assert runs == {1: 8, 2: 4, 3: 4, 4: 8}  # four micro-batches; the tied table is no module of a number


def cut_by_limit(run, gib):
    engine = make_engine(replace(run, partition_options={"memory_gib": gib, "cache": False}))
    return engine.recparallel.plan.partition.recompute, train(engine, run)


def test_a_limit_in_the_config_makes_stages_recompute(pools):
    """Between what the stages need with all activations and without any."""
    run = replace(RUN, partition="profile", num_items=40)
    found = {}
    for kib in (10**6, KIB):
        found[kib] = pools[2].run(cut_by_limit, run=run, gib=kib / 2**20)[0]
        assert found[kib][1] == pytest.approx(reference(run), rel=1e-5)
    assert found[10**6][0] == ()
    assert found[KIB][0]
    with pytest.raises(AssertionError, match="Recomputing every layer is not enough"):
        pools[2].run(cut_by_limit, run=run, gib=1 / 2**20)
