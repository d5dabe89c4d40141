"""Where an engine adds gradients up by itself, look-ups keep theirs by rows; results are those of one process."""

import pytest
from training import Run, make_engine, reference, train

from recparallel.models.row_gradients import KEEPER


def trained(run):
    """Losses; of each item table whether it keeps rows while the handle is on, and behind it."""
    from recparallel.models.layers import ItemEmbedding

    engine = make_engine(run)
    losses = train(engine, run)
    tables = [module.weight for module in engine.module.modules() if isinstance(module, ItemEmbedding)]
    keeps = [hasattr(table, KEEPER) for table in tables]
    engine.recparallel.remove()
    return losses, keeps, [hasattr(table, KEEPER) for table in tables]


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({"loss": "sampled_softmax", "num_items": 200}, True),
        ({"loss": "sampled_softmax", "num_items": 200, "stages": 1}, True),  # look-up and head in one stage
        ({"tied": False}, True),
        ({"stages": 1, "tensor": 2, "loss": "sampled_softmax"}, True),
        ({"zero": 1, "loss": "sampled_softmax"}, False),
    ],
)
def test_losses_are_those_of_one_process(pools, options, keeps):
    run = Run(steps=6, **{"stages": 2, **options})
    tables = 0
    for losses, while_on, behind in pools[2].run(trained, run=run):
        assert losses == pytest.approx(reference(run), rel=1e-5)
        assert all(kept == keeps for kept in while_on)
        assert not any(behind)
        tables += len(while_on)
    assert tables


def test_in_bf16_too(pools):
    run = Run(stages=2, steps=6, loss="sampled_softmax", num_items=200, dtype="bf16")
    for losses, while_on, _ in pools[2].run(trained, run=run):
        assert losses == pytest.approx(reference(run), rel=2e-3)
        assert all(while_on)
