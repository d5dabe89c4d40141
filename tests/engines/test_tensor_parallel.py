"""Ranks that share layers give the losses of one process, alone and with stages and replicas."""

import pytest
from training import FAMILIES, Run, reference, train_on_engine

RTOL = 1e-5  # fp32; sums are made in another order
STEPS = 10


def _agree(pools, run: Run, world_size: int) -> None:
    expected = reference(run)
    assert expected[-1] < expected[0]
    for losses in pools[world_size].run(train_on_engine, run=run):
        assert losses == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("world_size", "stages"), [(2, 1), (4, 2)])
def test_every_family_gives_the_losses_of_one_process(pools, family, world_size, stages):
    _agree(pools, Run(family=family, tensor=2, stages=stages, steps=STEPS), world_size)
