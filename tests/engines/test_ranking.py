"""Ranking through a pipeline gives the ranks of one plain process, also for a short last batch and after training."""

import pytest
import torch
from training import LENGTH, MICRO_BATCH, NUM_ITEMS, Run, built, make_engine, train


def _rows(num_users):
    generator = torch.Generator().manual_seed(3)
    made = []
    for user in range(num_users):
        items = (torch.randperm(NUM_ITEMS, generator=generator) + 1)[
            : int(torch.randint(2, 20, (1,), generator=generator))
        ]
        *seen, target = items.tolist()
        made.append({"user": user, "history": seen[-LENGTH:], "target": target, "listed": seen})
    return made


def ranks_on_engine(run, num_users):
    from recparallel.engines.ranking import rank_targets

    engine = make_engine(run)
    before = rank_targets(engine, _rows(num_users), max_length=LENGTH)
    losses = train(engine, run)  # ranking in between must not disturb training
    return before.tolist(), losses, engine.module.training


def _reference_ranks(run, num_users):
    from recparallel.models.layers import scores_at

    layers, modules = built(run)
    ranks = []
    for row in _rows(num_users):
        x = torch.tensor([row["history"]])
        for layer, module in zip(layers, modules):
            x = layer.run(module, x)
        scores = scores_at(x, torch.tensor([len(row["history"]) - 1]))[0]
        rivals = [i for i in range(1, NUM_ITEMS + 1) if i not in row["listed"] and i != row["target"]]
        ranks.append(1 + sum(bool(scores[i] >= scores[row["target"]]) for i in rivals))
    return ranks


@pytest.mark.parametrize(("world_size", "stages"), [(1, 1), (2, 2), (2, 1), (4, 2)])
@pytest.mark.parametrize("num_users", [2 * MICRO_BATCH * 2, 9, 1])
def test_ranks_equal_those_of_one_process(pools, world_size, stages, num_users):
    run = Run(stages=stages, steps=3, dropout=0.1)
    answers = pools[world_size].run(ranks_on_engine, run=run, num_users=num_users)
    expected = _reference_ranks(run, num_users)
    assert all(ranks == expected for ranks, *_ in answers)
    assert all(training for *_, training in answers)


def losses_alone(run):
    return train(make_engine(run), run)


def test_ranking_does_not_disturb_training(pools):
    run = Run(steps=3, dropout=0.1)
    ranked = pools[2].run(ranks_on_engine, run=run, num_users=5)
    assert [losses for _, losses, _ in ranked] == pools[2].run(losses_alone, run=run)
