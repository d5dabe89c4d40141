"""Answers through a pipeline: the scores of one plain process (losses are compared in test_parity.py)."""

import pytest
import torch
from training import LENGTH, MICRO_BATCH, NUM_ITEMS, Run, built, make_engine

YES, NO = 3, 5


def _rows(count):
    generator = torch.Generator().manual_seed(4)
    rows = []
    for user in range(count):
        items = torch.randint(
            1, NUM_ITEMS + 1, (int(torch.randint(2, LENGTH, (1,), generator=generator)),), generator=generator
        )
        rows.append({"user": user, "history": items.tolist(), "target": YES if user % 3 else NO, "listed": []})
    return rows


def scores_on_engine(run, count):
    from recparallel.engines.scoring import score_answers

    engine = make_engine(run)
    return score_answers(engine, _rows(count), max_length=LENGTH).tolist()


def _reference(run, count):
    layers, modules = built(run)
    scores = []
    for row in _rows(count):
        x = torch.tensor([row["history"]])
        for layer, module in zip(layers, modules):
            x = layer.run(module, x)
        hidden, table = x
        scores.append(
            (hidden[0, -1].double() @ table[YES].double() - hidden[0, -1].double() @ table[NO].double()).item()
        )
    return scores


@pytest.mark.parametrize(("world_size", "stages"), [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("count", [2 * MICRO_BATCH * 2, 9])
def test_scores_equal_those_of_one_process(pools, world_size, stages, count):
    run = Run(stages=stages, loss="answers")
    expected = _reference(run, count)
    for found in pools[world_size].run(scores_on_engine, run=run, count=count):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
