"""How long a stage takes on a device whose speed is emulated."""

import time

import pytest

from benchmarks.peers.stage_timer import StageTimer
from benchmarks.rank import CORES


class ForwardPass:
    """Has the name of DeepSpeed's."""


class LoadMicroBatch:
    """Is not computation."""


class Engine:
    """Has a map of instructions, as DeepSpeed's pipeline engine has."""

    def __init__(self, run):
        self._INSTRUCTION_MAP = {ForwardPass: run, LoadMicroBatch: run}


def spin(engine, *, seconds):
    """Use CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def wait(engine, *, seconds):
    """Use none."""
    time.sleep(seconds)


def taken(run, *, cores, monkeypatch, kind=ForwardPass):
    monkeypatch.setenv(CORES, cores)
    engine = Engine(run)
    timer = StageTimer(engine)
    engine._INSTRUCTION_MAP[kind](engine, seconds=0.02)
    engine._INSTRUCTION_MAP[kind](engine, seconds=0.02)
    return timer.take(), timer.take()


def test_cpu_seconds_that_ran_on_quota_left_over_count_by_the_share(monkeypatch):
    first, second = taken(spin, cores="0.1", monkeypatch=monkeypatch)
    assert first["stage_seconds"] >= 0.4 - 1e-9
    assert first["stage_wall_seconds"] >= 0.04 - 1e-9
    assert second == {"stage_seconds": 0.0, "stage_wall_seconds": 0.0}


def test_a_stage_that_was_held_down_takes_its_wall_time(monkeypatch):
    first, _ = taken(wait, cores="0.5", monkeypatch=monkeypatch)
    assert first["stage_seconds"] == first["stage_wall_seconds"] >= 0.04


def test_without_a_limit_the_clock_counts(monkeypatch):
    first, _ = taken(spin, cores="", monkeypatch=monkeypatch)
    assert first["stage_seconds"] == pytest.approx(first["stage_wall_seconds"])


def test_what_is_no_computation_is_not_counted(monkeypatch):
    first, _ = taken(spin, cores="0.1", monkeypatch=monkeypatch, kind=LoadMicroBatch)
    assert first["stage_seconds"] == 0.0
