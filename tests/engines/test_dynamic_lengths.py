"""Micro-batches as long as their longest history: shapes change from one to the next, losses are those of padded ones."""

from dataclasses import replace

import pytest
from training import GLOBAL_MICRO_BATCHES, Run, deepspeed_config, global_batches, recommender, reference

RUN = Run(steps=4, tied=False, bounds=(0, 3, 6))


def trimmed(inputs, labels):
    """Positions up to the longest history, an even number of them."""
    longest = int((inputs != 0).sum(1).max())
    positions = max(2, longest + longest % 2)
    return inputs[:, :positions], labels[:, :positions]


def train_dynamically(run, lengths="dynamic"):
    """Losses, and how many shapes there were."""
    import torch.distributed as dist

    import recparallel

    replicas = dist.get_world_size() // (run.stages * run.tensor)
    config = deepspeed_config(run, replicas)
    config["recparallel"]["lengths"] = lengths
    cut = run.bounds and recparallel.Partition(bounds=run.bounds, method="by hand")
    engine, *_ = recparallel.initialize(
        model=recommender(run), config=config, sample=global_batches(1)[0][0], partition=cut
    )
    share = GLOBAL_MICRO_BATCHES // replicas
    losses, shapes = [], set()
    for micro_batches in global_batches(run.steps):
        first = engine.grid.data_parallel_id * share
        own = [trimmed(*batch) for batch in micro_batches[first : first + share]]
        shapes |= {inputs.shape for inputs, _ in own}
        losses.append(engine.train_batch(iter(own)).item())
    return losses, len(shapes)


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [
        (2, {}),
        (4, {"stages": 4, "bounds": (0, 1, 3, 4, 6), "wire": "bf16"}),
        (4, {"zero": 1}),
        (4, {"tensor": 2, "sequence": True}),
        (2, {"spread_head": True, "bounds": None}),
    ],
    ids=["2 stages", "4 stages, bf16 on the wire", "2 replicas with ZeRO-1", "shared positions", "spread head"],
)
def test_losses_are_those_of_padded_batches(pools, world_size, changes):
    run = replace(RUN, **changes)
    tolerance = 1e-5 if run.wire == "same" else 2e-3
    for losses, shapes in pools[world_size].run(train_dynamically, run=run):
        assert shapes > 1
        assert losses == pytest.approx(reference(run), rel=tolerance)


def stage_without_micro_batches(run):
    import torch.distributed as dist

    import recparallel
    from recparallel.errors import ConfigError

    config = deepspeed_config(run, 1)
    config["recparallel"]["lengths"] = "dynamic"
    engine, *_ = recparallel.initialize(model=recommender(run), config=config, sample=global_batches(1)[0][0])
    if dist.get_rank() == 0:
        return ""
    with pytest.raises(ConfigError) as raised:
        engine.train_batch()
    return str(raised.value)


def test_every_stage_needs_the_micro_batches(pools):
    said = pools[2].run(stage_without_micro_batches, run=replace(RUN, bounds=None))[1]
    assert said.startswith("rank 1 was given no micro-batches: with recparallel.lengths 'dynamic'")
