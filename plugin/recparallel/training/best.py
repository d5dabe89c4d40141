"""Keep the best model of a training, and end it when validation has not become better for a while."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recparallel.checkpointing.commit import POINTER, latest
from recparallel.engines.agreement import Ranks
from recparallel.engines.checkpoint import Checkpointer, load_checkpoint
from recparallel.training.arguments import RANK

FOLDER = "best"
STATE = "validation.json"
"""Steps and values of all validations."""


class Best:
    """The model that did best on the validation data, in a folder of its own.

    Args:
        engine: that is trained.
        folder: of the checkpoint; what an earlier run has left there counts if it is resumed.
        patience: validations without a better one, after which the training ends.
        resume: go on from what stands in the folder.
    """

    def __init__(self, engine: Any, folder: Path, patience: int, *, resume: bool) -> None:
        self._engine, self._folder, self._patience = engine, folder, patience
        self._checkpointer = Checkpointer(engine, folder)
        self._seen: list[tuple[int, float]] = Ranks().first(self._found if resume else self._nothing)

    def _found(self) -> list[tuple[int, float]]:
        """Earlier validations up to the step that the training goes on from, if the best of them is still there."""
        path = self._folder / STATE
        known = json.loads(path.read_text()) if path.is_file() else []
        seen = [(step, value) for step, value in known if step <= self._engine.global_steps]
        return seen if seen and latest(self._folder).name == f"step_{best_of(seen)[0]}" else self._nothing()

    def _nothing(self) -> list[tuple[int, float]]:
        (self._folder / POINTER).unlink(missing_ok=True)  # a better one may be found at the same step
        return []

    @property
    def step(self) -> int:
        """Behind which the best model was found; 0 before the first."""
        return best_of(self._seen)[0] if self._seen else 0

    def judge(self, value: float, sampler: dict[str, Any]) -> bool:
        """Take note of a validation; collective, with the same value on every rank.

        Args:
            value: the larger, the better.
            sampler: its state, for the checkpoint.

        Returns:
            whether the training should end.
        """
        self._seen.append((int(self._engine.global_steps), value))
        if self.step == self._engine.global_steps:
            self._checkpointer.save(sampler=sampler)
            self._checkpointer.wait()
        if RANK == 0:
            (self._folder / STATE).write_text(json.dumps(self._seen) + "\n")
        return sum(step > self.step for step, _ in self._seen) >= self._patience

    def load(self) -> None:
        """Give the engine the weights of the best model; collective."""
        if self.step not in (0, self._engine.global_steps):
            load_checkpoint(self._engine, self._folder)

    def close(self) -> None:
        """Nothing is written any more."""
        self._checkpointer.close()


def best_of(seen: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The step and the value of the best validation, the first of equals."""
    return max(seen, key=lambda found: (found[1], -found[0]))
