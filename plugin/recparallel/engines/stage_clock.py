"""How long a stage computes in a step: its forward and backward passes, without what it waits for."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.pipe import schedule

from recparallel.engines.bindings import Bindings


class Timer(Protocol):
    """Runs from when it is made."""

    def stop(self) -> None:
        """The work is over, or what the device still has to do of it is known."""

    def seconds(self) -> float:
        """What it took; asked at the end of the step."""


class StageClock:
    """Times the passes of one engine's stage.

    Args:
        engine: a pipeline engine.
        timer: makes one; by default the host's clock, and on accelerators events in the stream of the computation.
    """

    def __init__(self, engine: Any, *, timer: Callable[[], Timer] | None = None) -> None:
        self._engine = engine
        self._new_timer = timer or (_HostTimer if engine.device.type == "cpu" else _DeviceTimer)
        self._running: list[Timer] = []
        self._seconds: list[float] = []
        self._failed = self._in_step = False

    def bind(self, bindings: Bindings) -> None:
        """Measure in every step from now on, until the bindings are removed."""
        instructions = self._engine._INSTRUCTION_MAP
        timed = {kind: self._timed(instructions[kind]) for kind in (schedule.ForwardPass, schedule.BackwardPass)}
        bindings.bind(self._engine, "_INSTRUCTION_MAP", {**instructions, **timed})

    def begin_step(self) -> None:
        """Passes from now on belong to a training step; those of evaluations between them count for nothing."""
        self._in_step = True

    def end_step(self) -> None:
        """The step is complete: read what was measured in it, which on an accelerator waits for it."""
        running, self._running, self._in_step = self._running, [], False
        self._safely(lambda: self._seconds.append(sum(timer.seconds() for timer in running)))

    def take(self) -> float | None:
        """Seconds of a forward and a backward pass of one micro-batch, the median over the steps since the last call; None where
        the clock failed in one of them."""
        seconds, self._seconds = self._seconds, []
        failed, self._failed = self._failed, False
        return None if failed or not seconds else median(seconds) / self._engine.micro_batches

    def _timed(self, run: Callable[..., None]) -> Callable[..., None]:
        def instruction(engine: Any, **kwargs: Any) -> None:
            timer = self._safely(self._new_timer) if self._in_step else None
            run(engine, **kwargs)
            if timer is not None:
                self._safely(timer.stop)
                self._running.append(timer)

        return instruction

    def _safely(self, measure: Callable[[], Any]) -> Any:
        """A clock that fails must not stop the training."""
        try:
            return measure()
        except Exception:
            self._failed = True
            return None


class _HostTimer:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def stop(self) -> None:
        self._took = time.perf_counter() - self._start

    def seconds(self) -> float:
        return self._took


class _DeviceTimer:
    def __init__(self) -> None:
        event = get_accelerator().Event
        self._begin, self._end = event(enable_timing=True), event(enable_timing=True)
        self._begin.record()

    def stop(self) -> None:
        self._end.record()

    def seconds(self) -> float:
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3
