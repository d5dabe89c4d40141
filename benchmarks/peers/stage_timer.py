"""How long a stage computes in a step: the forward and backward instructions of a DeepSpeed pipeline engine, timed.

A rank of an emulated cluster that has waited may run for some milliseconds on quota that it has left, faster than a device
of its speed could. Where that makes up most of a stage, its wall time tells nothing about the device: the stage's CPU
seconds, divided by the cores that the rank may use, do. The time of a stage is the larger of the two.
"""

import time
from collections.abc import Callable
from typing import Any

from benchmarks import rank as bench


class StageTimer:
    """Times instructions of one engine; its map of instructions is replaced on the instance alone.

    Args:
        engine: a pipeline engine of DeepSpeed.
    """

    TIMED = ("ForwardPass", "BackwardPass")

    def __init__(self, engine: Any) -> None:
        self._cores = bench.cores()
        self._wall = self._cpu = 0.0
        engine._INSTRUCTION_MAP = {
            kind: self._timed(run) if kind.__name__ in self.TIMED else run
            for kind, run in engine._INSTRUCTION_MAP.items()
        }

    def take(self) -> dict[str, float]:
        """``stage_seconds`` of all forward and backward passes since the last call, and their ``stage_wall_seconds``."""
        wall, cpu = self._wall, self._cpu
        self._wall = self._cpu = 0.0
        return {"stage_seconds": max(wall, cpu / self._cores if self._cores else 0.0), "stage_wall_seconds": wall}

    def _timed(self, run: Callable[..., None]) -> Callable[..., None]:
        def instruction(engine: Any, **kwargs: Any) -> None:
            # Without a GPU a backward pass runs in the thread that asks for it, and with one thread a rank nothing runs beside it.
            wall, cpu = time.perf_counter(), time.thread_time()
            run(engine, **kwargs)
            self._wall += time.perf_counter() - wall
            self._cpu += time.thread_time() - cpu

        return instruction
