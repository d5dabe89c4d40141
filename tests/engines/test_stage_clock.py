"""A clock that counts the passes of training steps alone, and whose failure stops nothing."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.pipe import schedule

from recparallel.engines.bindings import Bindings
from recparallel.engines.stage_clock import StageClock


class Counting:
    """Every timer says a second, unless the clock is broken."""

    broken = False

    def __init__(self):
        if Counting.broken:
            raise OSError("no clock")

    def stop(self):
        pass

    def seconds(self):
        return 1.0


@pytest.fixture
def engine():
    Counting.broken = False
    ran = []
    instructions = {
        kind: lambda engine, **kwargs: ran.append(1) for kind in (schedule.ForwardPass, schedule.BackwardPass)
    }
    return SimpleNamespace(_INSTRUCTION_MAP=instructions, micro_batches=2, device=torch.device("cpu"), ran=ran)


def step(engine, clock, *, passes=2):
    clock.begin_step()
    for _ in range(passes):
        for kind in (schedule.ForwardPass, schedule.BackwardPass):
            engine._INSTRUCTION_MAP[kind](engine)
    clock.end_step()


def test_a_micro_batch_takes_what_its_passes_take(engine):
    clock, bindings = StageClock(engine, timer=Counting), Bindings()
    clock.bind(bindings)
    for passes in (2, 2, 6):
        step(engine, clock, passes=passes)
    assert clock.take() == 2.0  # the median step has four seconds for two micro-batches
    assert clock.take() is None


def test_passes_of_an_evaluation_count_for_nothing(engine):
    clock = StageClock(engine, timer=Counting)
    clock.bind(Bindings())
    step(engine, clock)
    for _ in range(50):
        engine._INSTRUCTION_MAP[schedule.ForwardPass](engine)
    step(engine, clock)
    assert clock.take() == 2.0


def test_a_clock_that_fails_stops_no_pass_and_recovers(engine):
    clock = StageClock(engine, timer=Counting)
    clock.bind(Bindings())
    Counting.broken = True
    step(engine, clock)
    assert len(engine.ran) == 4
    assert clock.take() is None
    Counting.broken = False
    step(engine, clock)
    assert clock.take() == 2.0


def test_the_hosts_clock_is_the_default_on_a_cpu(engine):
    clock = StageClock(engine)
    clock.bind(Bindings())
    step(engine, clock)
    assert 0 <= clock.take() < 1
