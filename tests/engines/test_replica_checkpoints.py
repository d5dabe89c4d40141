"""Replicas that train apart stop and go on: each with what its own optimizer keeps, and with the outer optimizer's momentum."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import free_port
from replicas_training import PLAIN, Apart, assert_close, launched, train_own, weights_of
from training import Run, make_engine

DILOCO = {"mode": "diloco", "local_steps": 2, "outer_learning_rate": 0.7, "outer_momentum": 0.9, "overlap": 1}
RUN = replace(PLAIN, steps=7, deepspeed={})  # AdamW
STOP = 3
"""In the middle of a round, while a mean is on its way."""


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("mode", [DILOCO, {**DILOCO, "compression": "int8"}], ids=["dense", "int8"])
def test_a_training_goes_on_as_if_it_had_not_stopped(pools, tmp_path, mode, stages):
    apart = Apart(replace(RUN, stages=stages), {**mode, "replicas": 2})
    pool = pools[2 * stages]
    expected = pool.run(stop_and_go_on, apart=replace(apart, port=free_port()), folder=str(tmp_path))
    found = pool.run(go_on, apart=replace(apart, port=free_port()), folder=str(tmp_path))
    for own, other in zip(expected, found):
        for name, weight in own.items():
            assert torch.equal(weight, other[name]), name


def test_other_modes_and_single_worlds_go_on_from_the_common_weights(pools, tmp_path):
    apart = Apart(RUN, DILOCO)
    pools[2].run(stop_and_go_on, apart=replace(apart, port=free_port()), folder=str(tmp_path))
    common = pools[1].run(load_alone, run=RUN, folder=str(tmp_path))[0]
    stopped = weights_of(pools[2], replace(apart, run=RUN, stop=STOP))
    assert_close(common, stopped, rtol=0, atol=0)
    for mode in ({"mode": "local_sgd", "local_steps": 2}, {"mode": "delayed"}):
        other = [pools[2].run(go_on, apart=Apart(RUN, mode, port=free_port()), folder=str(tmp_path)) for _ in range(2)]
        for name, weight in other[0][0].items():
            assert torch.equal(weight, other[0][1][name])
            assert torch.equal(weight, other[1][0][name])


def test_a_new_replica_begins_with_what_the_first_has(pools, tmp_path):
    pools[2].run(stop_and_go_on, apart=Apart(RUN, DILOCO, port=free_port()), folder=str(tmp_path))
    found = pools[4].run(go_on, apart=Apart(RUN, DILOCO, port=free_port()), folder=str(tmp_path))
    for name, weight in found[0].items():
        assert all(torch.equal(weight, other[name]) for other in found[1:])


def test_a_finished_training_that_is_resumed_stays_what_it_is(pools, tmp_path):
    pools[2].run(stop_and_go_on, apart=Apart(RUN, DILOCO, port=free_port()), folder=str(tmp_path))
    assert all(pools[2].run(meet_again, apart=Apart(RUN, DILOCO, port=free_port()), folder=str(tmp_path)))


def meet_again(apart: Apart, folder: str) -> bool:
    """Whether weights are the same behind a meeting to which nobody brings anything: momentum alone must not move them."""
    from recparallel.engines.checkpoint import load_checkpoint
    from recparallel.engines.engine_state import read_weights

    with launched(apart) as engine:
        load_checkpoint(engine, Path(folder))
        before = {name: weight.clone() for name, weight in read_weights(engine).items()}
        engine.recparallel.meet()
        return all(torch.equal(weight, before[name]) for name, weight in read_weights(engine).items())


def stop_and_go_on(apart: Apart, folder: str) -> dict[str, torch.Tensor]:
    from recparallel.engines.checkpoint import save_checkpoint

    with launched(apart) as engine:
        train_own(engine, apart.run, last=STOP)
        save_checkpoint(engine, Path(folder), sampler={})
        return _ended(engine, apart.run)


def go_on(apart: Apart, folder: str) -> dict[str, torch.Tensor]:
    from recparallel.engines.checkpoint import load_checkpoint

    with launched(apart) as engine:
        load_checkpoint(engine, Path(folder))
        assert engine.global_steps == STOP
        return _ended(engine, apart.run)


def load_alone(run: Run, folder: str) -> dict[str, torch.Tensor]:
    from recparallel.engines.checkpoint import load_checkpoint
    from recparallel.engines.engine_state import read_weights

    engine = make_engine(run)
    load_checkpoint(engine, Path(folder))
    return {name: weight.clone() for name, weight in read_weights(engine).items()}


def _ended(engine, run):
    from recparallel.engines.engine_state import read_weights

    train_own(engine, run, first=STOP)
    engine.recparallel.meet()
    return {name: weight.clone() for name, weight in read_weights(engine).items()}
