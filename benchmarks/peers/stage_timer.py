"""How long a stage computes in a step: the forward and backward instructions of a DeepSpeed pipeline engine, timed."""

import time
from collections.abc import Callable
from typing import Any


class StageTimer:
    """Times instructions of one engine; its map of instructions is replaced on the instance alone.

    Args:
        engine: a pipeline engine of DeepSpeed.
    """

    TIMED = ("ForwardPass", "BackwardPass")

    def __init__(self, engine: Any) -> None:
        self._seconds = 0.0
        engine._INSTRUCTION_MAP = {
            kind: self._timed(run) if kind.__name__ in self.TIMED else run
            for kind, run in engine._INSTRUCTION_MAP.items()
        }

    def take(self) -> float:
        """Seconds of all forward and backward passes since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _timed(self, run: Callable[..., None]) -> Callable[..., None]:
        def instruction(engine: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            run(engine, **kwargs)
            self._seconds += time.perf_counter() - start

        return instruction
