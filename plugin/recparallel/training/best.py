"""Keep the best model of a training, and end it when validation has not become better for a while."""

import json
from pathlib import Path
from typing import Any

from recparallel.engines.checkpoint import Checkpointer, load_checkpoint
from recparallel.training.arguments import RANK

FOLDER = "best"
STATE = "validation.json"


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
        self._value, self._step, self._waited = float("-inf"), 0, 0
        if resume and (folder / STATE).is_file():
            state = json.loads((folder / STATE).read_text())
            if state["seen"] <= engine.global_steps:  # what came behind the checkpoint is done again
                self._value, self._step, self._waited = state["value"], state["step"], state["waited"]

    @property
    def step(self) -> int:
        """Behind which the best model was found; 0 before the first."""
        return self._step

    def judge(self, value: float, sampler: dict[str, Any]) -> bool:
        """Take note of a validation; collective, with the same value on every rank.

        Args:
            value: the larger, the better.
            sampler: its state, for the checkpoint.

        Returns:
            whether the training should end.
        """
        if value > self._value:
            self._value, self._step, self._waited = value, int(self._engine.global_steps), 0
            self._checkpointer.save(sampler=sampler)
            self._checkpointer.wait()
        else:
            self._waited += 1
        if RANK == 0:
            state = {
                "value": self._value,
                "step": self._step,
                "waited": self._waited,
                "seen": self._engine.global_steps,
            }
            (self._folder / STATE).write_text(json.dumps(state) + "\n")
        return self._waited >= self._patience

    def load(self) -> None:
        """Give the engine the weights of the best model; collective."""
        if self._step and self._step != self._engine.global_steps:
            load_checkpoint(self._engine, self._folder)

    def close(self) -> None:
        """Nothing is written any more."""
        self._checkpointer.close()
