"""A mode that is watched: replicas leave it together where validations become worse, and stay out of it at a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import RankError
from launching import free_port
from replicas_training import PLAIN, Apart, launched, train_own

from recparallel.config import GateConfig

DILOCO = {"mode": "diloco", "local_steps": 3}
PACE = {"mode": "bounded_staleness", "local_steps": 2}


@pytest.mark.parametrize("mode", [DILOCO, PACE], ids=lambda mode: mode["mode"])
def test_replicas_fall_back_together_and_stay_so(pools, tmp_path, mode):
    apart = Apart(replace(PLAIN, deepspeed={}), mode)
    ends = pools[2].run(watch, apart=replace(apart, port=free_port()), folder=str(tmp_path))
    assert [end["modes"] for end in ends] == [[mode["mode"]] * 3 + ["local_sgd"]] * 2
    for end in ends:
        assert end["told"] == ["0.1500 from 0.2000"]
        for name, weight in end["weights"].items():
            assert torch.equal(weight, ends[0]["weights"][name]), name
    resumed = pools[2].run(begin_again, apart=replace(apart, port=free_port()), folder=str(tmp_path))
    assert resumed == ["local_sgd"] * 2


def watch(apart: Apart, folder: str) -> dict[str, Any]:
    from recparallel import events
    from recparallel.engines.engine_state import read_weights
    from recparallel.training.gate import Gate

    told: list[str] = []

    def note(event: events.Event) -> None:
        if isinstance(event, events.FellBack):
            told.append(str(event).partition("fell to ")[2].partition(";")[0])

    with launched(apart) as engine, events.subscribe(note):
        gate = Gate(engine, GateConfig(margin=0.1), Path(folder), resume=False)
        number = engine.recparallel.replicas.world.number
        modes = []
        for step, value in enumerate((0.2, 0.19, 0.15)):
            # At its own pace a replica may be anywhere.
            ahead = number if apart.mode == PACE else 0
            train_own(engine, apart.run, first=step, last=step + 1 + ahead)
            modes.append(engine.recparallel.plan.data_parallel)
            gate.judge(engine.recparallel.as_first(value))
        modes.append(engine.recparallel.plan.data_parallel)
        train_own(engine, apart.run, first=4, last=6)
        weights = {name: weight.clone() for name, weight in read_weights(engine).items()}
        return {"modes": modes, "told": told, "weights": weights}


def begin_again(apart: Apart, folder: str) -> str:
    from recparallel.training.gate import Gate

    with launched(apart) as engine:
        engine.global_steps = 10**6
        engine.recparallel.replicas.at_rest()
        Gate(engine, GateConfig(margin=0.1), Path(folder), resume=True)
        return engine.recparallel.plan.data_parallel


def test_one_world_has_no_other_mode(pools):
    with pytest.raises(RankError, match="replicas of one world, and those that come and go, have no other mode"):
        pools[2].run(change_alone, apart=Apart(PLAIN, None, port=free_port()))


def change_alone(apart: Apart) -> None:
    with launched(apart) as engine:
        engine.recparallel.change_mode({"mode": "local_sgd"})
