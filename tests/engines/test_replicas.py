"""Replicas that train apart: against the synchronous engine, and against each mode's algorithm in one process."""

from dataclasses import replace

import pytest
from launching import free_port
from replicas_training import PLAIN, Apart, algorithm, assert_close, launched, weights_of
from training import global_batches


def test_modes_with_one_step_and_no_delay_are_synchronous(pools):
    expected = weights_of(pools[2], Apart(PLAIN))
    for mode in ({"mode": "local_sgd", "local_steps": 1}, {"mode": "delayed", "delay": 0}, OUTER_OF_ONE):
        assert_close(weights_of(pools[2], Apart(PLAIN, mode)), expected)


OUTER_OF_ONE = {"mode": "diloco", "local_steps": 1, "outer_learning_rate": 1.0, "outer_momentum": 0.0}


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(replace(PLAIN, stages=2), id="PP 2"),
        pytest.param(replace(PLAIN, stages=2, partition="profile"), id="PP 2, each measures"),
        pytest.param(replace(PLAIN, stages=2, tied=False, schedule="1f1b"), id="PP 2, untied, 1F1B"),
        pytest.param(replace(PLAIN, dropout=0.3), id="DP 2 inside, dropout"),
        pytest.param(replace(PLAIN, zero=1), id="ZeRO-1"),
    ],
)
def test_replicas_of_several_ranks(pools, run):
    expected = weights_of(pools[4], Apart(run))
    assert_close(weights_of(pools[4], Apart(run, {"mode": "local_sgd", "local_steps": 1, "replicas": 2})), expected)


def test_all_replicas_take_the_cut_of_the_first(pools):
    run, mode = replace(PLAIN, stages=2), {"mode": "local_sgd"}
    cuts = ((0, 2, 6), (0, 2, 6), (0, 3, 6), (0, 3, 6))
    assert pools[4].run(bounds_of, apart=Apart(run, mode, port=free_port(), cuts=cuts)) == [(0, 2, 6)] * 4


def test_steps_without_an_iterator_read_on_from_the_engines_own(pools):
    assert pools[2].run(train_from_the_engine, apart=Apart(PLAIN, {"mode": "local_sgd"}, port=free_port())) == [3, 3]


def train_from_the_engine(apart):
    with launched(apart) as engine:
        engine.data_iterator = iter([batch for step in global_batches(3) for batch in step[: engine.micro_batches]])
        for _ in range(3):
            engine.train_batch()
        return engine.global_steps


def bounds_of(apart):
    with launched(apart) as engine:
        return engine.recparallel.plan.partition.bounds


def test_zero_1_in_bf16(pools):
    run = replace(PLAIN, zero=1, dtype="bf16")
    expected = weights_of(pools[4], Apart(run))
    found = weights_of(pools[4], Apart(run, {"mode": "local_sgd", "local_steps": 1, "replicas": 2}))
    assert_close(found, expected, rtol=2e-2, atol=2e-3)  # gradients are rounded at other sums


@pytest.mark.parametrize("steps", [6, 7], ids=["whole rounds", "a part of a round at the end"])
@pytest.mark.parametrize(
    "mode",
    [
        {"mode": "local_sgd", "local_steps": 3},
        {"mode": "local_sgd", "local_steps": [[0, 1], [2, 3]]},
        {"mode": "diloco", "local_steps": 3, "outer_learning_rate": 0.7, "outer_momentum": 0.9},
        {"mode": "diloco", "local_steps": 3, "outer_learning_rate": 0.7, "outer_momentum": 0.9, "overlap": 1},
        {"mode": "diloco", "local_steps": 4, "fragments": 2, "outer_learning_rate": 0.7, "outer_momentum": 0.5},
        {"mode": "delayed", "delay": 2},
        {"mode": "delayed", "delay": 1, "local_steps": 3},
    ],
    ids=lambda mode: " ".join(map(str, mode.values())),
)
def test_against_the_algorithm_in_one_process(pools, mode, steps):
    run = replace(PLAIN, steps=steps, deepspeed={})  # AdamW
    assert_close(weights_of(pools[2], Apart(run, mode)), algorithm(run, mode, worlds=2))


@pytest.mark.parametrize("codec", ["int8", {"codec": "top_k", "ratio": 1.0}, "torch_bf16", "bf16"])
def test_what_is_exchanged_goes_through_a_codec(pools, codec):
    run = replace(PLAIN, deepspeed={})
    mode = {"mode": "diloco", "local_steps": 3}
    tolerance = {"rtol": 0.05, "atol": 5e-4} if codec != {"codec": "top_k", "ratio": 1.0} else {}
    assert_close(
        weights_of(pools[2], Apart(run, {**mode, "compression": codec})), algorithm(run, mode, worlds=2), **tolerance
    )
