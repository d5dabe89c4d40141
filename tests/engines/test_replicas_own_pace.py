"""Replicas at their own pace: with a bound of nothing the synchronous engine; else each by its speed, and none too far ahead."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import free_port
from replicas_training import PLAIN, Apart, algorithm, assert_close, launched, weights_of
from training import global_batches

PLAINLY = {"outer_learning_rate": 1.0, "outer_momentum": 0.0, "momentum_every": 1}
SYNCHRONOUS = {"mode": "bounded_staleness", "staleness": 0, "local_steps": 1, **PLAINLY}


@pytest.mark.parametrize(
    ("run", "ranks"),
    [
        pytest.param(PLAIN, 2, id="alone"),
        pytest.param(replace(PLAIN, stages=2), 4, id="PP 2"),
        pytest.param(replace(PLAIN, dropout=0.3), 4, id="DP 2 inside, dropout"),
        pytest.param(replace(PLAIN, zero=1), 4, id="ZeRO-1"),
    ],
)
def test_without_staleness_it_is_synchronous(pools, run, ranks):
    found = weights_of(pools[ranks], Apart(run, {**SYNCHRONOUS, "replicas": 2}))
    assert_close(found, weights_of(pools[ranks], Apart(run)))


def test_without_staleness_it_is_synchronous_in_bf16(pools):
    run = replace(PLAIN, zero=1, dtype="bf16")
    found = weights_of(pools[4], Apart(run, {**SYNCHRONOUS, "replicas": 2}))
    assert_close(found, weights_of(pools[4], Apart(run)), rtol=2e-2, atol=2e-3)  # gradients are rounded at other sums


@pytest.mark.parametrize("steps", [6, 7], ids=["whole rounds", "a part of a round at the end"])
def test_equal_rounds_that_are_waited_for_are_diloco(pools, steps):
    run = replace(PLAIN, steps=steps, deepspeed={})  # AdamW
    same = {"local_steps": 3, "outer_learning_rate": 0.7, "outer_momentum": 0.9}
    mode = {"mode": "bounded_staleness", "staleness": 0, "match_speed": False, "momentum_every": 1, **same}
    assert_close(weights_of(pools[2], Apart(run, mode)), algorithm(run, {"mode": "diloco", **same}, worlds=2))


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_fast_replica_makes_more_steps_and_keeps_to_the_bound(pools, staleness):
    mode = {"mode": "bounded_staleness", "staleness": staleness, "local_steps": 4, "compression": "int8"}
    fast, slow = pools[2].run(train_by_the_clock, apart=Apart(PLAIN, mode, port=free_port()), seconds=(0.0, 0.3))
    for name, weight in fast["weights"].items():
        assert torch.equal(weight, slow["weights"][name]), name
    assert fast["clock"] == slow["clock"] == (fast["steps"] + slow["steps"]) // 2
    assert fast["steps"] > 1.5 * slow["steps"]
    for told in (fast, slow):
        assert all(late <= staleness * 4 for late, _, _ in told["exchanges"])
        assert all(0 <= behind <= staleness for _, _, both in told["exchanges"] for behind in both)
    assert [steps for _, steps, _ in fast["exchanges"]] == [steps for _, steps, _ in slow["exchanges"]]
    assert any(behind > 0 for _, _, both in fast["exchanges"] for behind in both)
    rounds = [steps for _, steps, _ in fast["exchanges"]][2:-2]
    assert all(other < 4 for _, other in rounds)  # matched to its speed


def train_by_the_clock(apart: Apart, seconds: tuple[float, ...]) -> dict[str, Any]:
    """Train until the clock has made 16 steps, each with so many seconds on top."""
    from recparallel import events
    from recparallel.engines.engine_state import read_weights

    with launched(apart) as engine:
        told: list[events.ReplicaExchange] = []
        number = engine.recparallel.replicas.world.number
        read = read_own(engine)
        with events.subscribe(lambda event: told.append(event) if isinstance(event, events.ReplicaExchange) else None):
            while engine.recparallel.progress < 16:
                engine.train_batch(slowly(next(read), seconds[number]))
            engine.recparallel.meet()
        return {
            "weights": {name: weight.clone() for name, weight in read_weights(engine).items()},
            "steps": engine.global_steps,
            "clock": engine.recparallel.progress,
            "exchanges": [(event.late, event.steps, event.staleness) for event in told],
        }


def read_own(engine: Any) -> Any:
    """Micro-batches of a replica, step by step, without an end."""
    number = engine.recparallel.replicas.world.number
    while True:
        yield from (
            step[number * engine.micro_batches : (number + 1) * engine.micro_batches] for step in global_batches(4)
        )


def slowly(micro_batches: list[Any], seconds: float) -> Any:
    for number, batch in enumerate(micro_batches):
        time.sleep(seconds if number == 0 else 0)
        yield batch


def test_replicas_meet_whatever_each_has_done(pools):
    mode = {"mode": "bounded_staleness", "local_steps": 2}
    ends = pools[2].run(train_and_meet, apart=Apart(PLAIN, mode, port=free_port()), steps=(7, 2))
    for name, weight in ends[0]["weights"].items():
        assert torch.equal(weight, ends[1]["weights"][name]), name
    assert [end["clock"] for end in ends] == [4, 4]
    assert [end["first"] for end in ends] == ["7 of 0"] * 2


def train_and_meet(apart: Apart, steps: tuple[int, ...]) -> dict[str, Any]:
    from recparallel.engines.engine_state import read_weights

    with launched(apart) as engine:
        number = engine.recparallel.replicas.world.number
        read = read_own(engine)
        for _ in range(steps[number]):
            engine.train_batch(iter(next(read)))
        first = engine.recparallel.as_first(f"{steps[number]} of {number}")
        return {
            "weights": {name: weight.clone() for name, weight in read_weights(engine).items()},
            "clock": engine.recparallel.progress,
            "first": first,
        }


def test_a_checkpoint_has_the_clock_and_other_modes_go_on_from_it(pools, tmp_path):
    mode = {"mode": "bounded_staleness", "local_steps": 2}
    apart = Apart(PLAIN, mode, port=free_port())
    ends = pools[2].run(stop, apart=apart, folder=str(tmp_path))
    assert (tmp_path / "step_4").is_dir()
    assert (tmp_path / "replica_1" / "step_4").is_dir()
    for other in (mode, {"mode": "local_sgd", "local_steps": 2}):
        found = pools[2].run(go_on, apart=Apart(PLAIN, other, port=free_port()), folder=str(tmp_path))
        for end, begin in zip(ends, found):
            assert begin["clock"] == begin["steps"] == 4
            for name, weight in end.items():
                assert torch.equal(weight, begin["weights"][name]), name


def stop(apart: Apart, folder: str) -> dict[str, torch.Tensor]:
    from recparallel.engines.checkpoint import save_checkpoint
    from recparallel.engines.engine_state import read_weights

    with launched(apart) as engine:
        number = engine.recparallel.replicas.world.number
        read = read_own(engine)
        for _ in range((7, 2)[number]):
            engine.train_batch(iter(next(read)))
        save_checkpoint(engine, Path(folder), sampler={})
        return {name: weight.clone() for name, weight in read_weights(engine).items()}


def go_on(apart: Apart, folder: str) -> dict[str, Any]:
    from recparallel.engines.checkpoint import load_checkpoint
    from recparallel.engines.engine_state import read_weights

    with launched(apart) as engine:
        load_checkpoint(engine, Path(folder))
        begin = {name: weight.clone() for name, weight in read_weights(engine).items()}
        clock, steps = engine.recparallel.progress, engine.global_steps
        read = read_own(engine)
        for _ in range(3):
            engine.train_batch(iter(next(read)))
        engine.recparallel.meet()
        return {"weights": begin, "clock": clock, "steps": steps}
