"""Watch a mode of data parallelism by the validations: where recommendations become worse, replicas fall back to another mode."""

import json
import os
from pathlib import Path
from typing import Any

from recparallel import events
from recparallel.config import GateConfig
from recparallel.engines.agreement import Ranks
from recparallel.training.arguments import GATE, RANK


class Gate:
    """Compares each validation with the best before it.

    Args:
        engine: one replica of several that train apart.
        config: how much worse is too much, and the mode to fall back to.
        folder: where it notes what it has seen.
        resume: go on from what stands there, as far as it is not ahead of the training; a mode that it has fallen back to is taken
            again.
    """

    def __init__(self, engine: Any, config: GateConfig, folder: Path, *, resume: bool) -> None:
        self._engine, self._config, self._path = engine, config, folder / GATE
        own = Ranks().first(lambda: self._found() if resume else [])
        self._seen: list[tuple[int, float]] = engine.recparallel.as_first(own)
        if any(self._is_too_low(number) for number in range(len(self._seen))):
            engine.recparallel.change_mode(config.fall_back)

    def judge(self, value: float) -> None:
        """Take note of a validation, and fall back if it is too low; collective, with the same value on every rank.

        Args:
            value: the larger, the better.
        """
        step = self._engine.recparallel.progress
        has_fallen = any(self._is_too_low(number) for number in range(len(self._seen)))
        self._seen.append((step, value))
        if RANK == 0:
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(self._seen) + "\n")
            os.replace(fresh, self._path)
        if not has_fallen and self._is_too_low(len(self._seen) - 1):
            before = self._engine.recparallel.plan.data_parallel
            self._engine.recparallel.change_mode(self._config.fall_back)
            now = self._engine.recparallel.plan.data_parallel
            events.emit(events.FellBack(step, value, self._best(len(self._seen) - 1), before, now))

    def _best(self, end: int) -> float:
        return max((value for _, value in self._seen[:end]), default=float("-inf"))

    def _is_too_low(self, number: int) -> bool:
        return number > 0 and self._seen[number][1] < self._best(number) * (1 - self._config.margin)

    def _found(self) -> list[tuple[int, float]]:
        if not self._path.is_file():
            return []
        now = self._engine.recparallel.progress
        return [(step, value) for step, value in json.loads(self._path.read_text()) if step <= now]
