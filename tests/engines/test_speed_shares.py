"""Replicas with different shares of a global batch train as equal ones; and a slow one gets less."""

from dataclasses import replace

import pytest
from test_initialize import _windows
from training import LENGTH, MICRO_BATCH, Run, deepspeed_config, recommender

from recparallel.config import parse_config
from recparallel.config_checks import check_together
from recparallel.errors import ConfigError

RUN = Run(stages=1, steps=12)


def train(run, section, *, slow=0.0):
    """Losses, and rows of a micro-batch in each step; the last replica takes so many seconds more a row."""
    import time

    import torch.distributed as dist

    import recparallel

    config = deepspeed_config(run, dist.get_world_size())
    config["recparallel"] |= section
    engine, _, loader, _ = recparallel.initialize(
        model=recommender(run), config=config, training_data=_windows(), max_length=LENGTH
    )
    if slow and dist.get_rank() == dist.get_world_size() - 1:
        first = engine.module.get_submodule("1")
        first.register_forward_pre_hook(lambda _, inputs: time.sleep(slow * len(inputs[0])))
    losses, rows = [], []
    while len(losses) < run.steps:
        for micro_batches in loader:
            rows.append([len(inputs) for inputs, *_ in micro_batches])
            losses.append(engine.train_batch(iter(micro_batches)).item())
    shares = engine.recparallel.shares
    return losses[: run.steps], rows, None if shares is None else (list(shares.rows), shares.own_in_all)


@pytest.mark.parametrize(
    ("run", "rtol"),
    [
        (RUN, 1e-5),
        (replace(RUN, zero=1), 1e-5),
        (replace(RUN, compression={"codec": "fp16"}), 2e-3),
    ],
    ids=["plain", "ZeRO-1", "fp16 exchange"],
)
def test_unequal_shares_train_as_one_process(pools, run, rtol):
    one = pools[1].run(train, run=replace(run, compression=None), section={})[0][0]
    found = pools[2].run(train, run=run, section={"data_parallel": {"shares": [3, 1]}})
    for number, (losses, rows, told) in enumerate(found):
        assert losses == pytest.approx(one, rel=rtol)
        assert all(step == [3 - 2 * number] * 2 for step in rows)
        assert told == ([3, 1], 4 / (3 - 2 * number))


def test_packed_rows_are_shared_too(pools):
    run = replace(RUN, steps=6)
    one = pools[1].run(train, run=run, section={"lengths": "packed", "attention": "fastest"})[0][0]
    section = {"lengths": "packed", "attention": "fastest", "data_parallel": {"shares": [1, 3]}}
    for losses, _, _ in pools[2].run(train, run=run, section=section):
        assert losses == pytest.approx(one, rel=1e-5)


def test_a_slow_replica_gets_less(pools):
    run = replace(RUN, steps=30)
    one = pools[1].run(train, run=run, section={})[0][0]
    found = pools[2].run(train, run=run, section={"data_parallel": {"shares": "by_speed"}}, slow=0.05)
    for number, (losses, rows, told) in enumerate(found):
        assert losses == pytest.approx(one, rel=1e-5)
        assert rows[0] == [MICRO_BATCH] * 2  # nothing is known yet
        assert told[0] == [3, 1]
        assert rows[-1] == [told[0][number]] * 2


def test_equal_shares_by_hand_change_nothing(pools):
    found = pools[2].run(train, run=RUN, section={"data_parallel": {"shares": [2, 2]}})
    equal = pools[2].run(train, run=RUN, section={})
    assert [losses for losses, *_ in found] == [losses for losses, *_ in equal]  # to the last bit


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"data_parallel": {"shares": [1, 2, 1]}}, "has 3 numbers, the launch has 2 replicas"),
        ({"data_parallel": {"shares": [3, 2]}}, "are 5 rows, but train_micro_batch_size_per_gpu 2 × 2 replicas are 4"),
        ({"data_parallel": {"shares": [4, 0]}}, "shares"),
        ({"data_parallel": {"shares": "speed"}}, "by_speed"),
        ({"stages": 2, "data_parallel": {"shares": "by_speed"}}, "it runs with 1 and 1"),
        ({"data_parallel": {"mode": "local_sgd", "shares": "by_speed"}}, "shares beside mode 'local_sgd'"),
    ],
)
def test_shares_that_cannot_be(section, message):
    config = deepspeed_config(RUN, 2)
    config["recparallel"] |= section
    with pytest.raises(ConfigError, match=message):
        check_together(config, parse_config(config), world_size=2)
