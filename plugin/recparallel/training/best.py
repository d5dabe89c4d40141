"""Keep the best model of a training, and end it when validation has not become better for a while."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recparallel.checkpointing.commit import POINTER, latest
from recparallel.engines.agreement import Ranks
from recparallel.engines.checkpoint import Checkpointer, load_weights
from recparallel.training.arguments import RANK, VALIDATIONS


class Best:
    """The model that did best on the validation data, in a folder of its own, which holds one checkpoint.

    Args:
        engine: that is trained.
        folder: of the checkpoint.
        patience: validations without a better one, after which the training ends.
        resume: go on from what stands in the folder. Where the best model was found behind the step that the training goes on
            from, nothing counts: it will be found again.
    """

    def __init__(self, engine: Any, folder: Path, patience: int, *, resume: bool) -> None:
        self._engine, self._folder, self._patience = engine, folder, patience
        self._checkpointer = Checkpointer(engine, folder)
        self._seen: list[tuple[int, float]] = Ranks().first(lambda: self._found() if resume else self._nothing())

    @property
    def step(self) -> int:
        """Behind which the best model was found; 0 before the first."""
        return best_of(self._seen)[0] if self._seen else 0

    @property
    def is_over(self) -> bool:
        """The training should end."""
        return sum(step > self.step for step, _ in self._seen) >= self._patience

    def judge(self, value: float, sampler: dict[str, Any]) -> bool:
        """Take note of a validation; collective, with the same value on every rank.

        Args:
            value: the larger, the better.
            sampler: its state, for the checkpoint.

        Returns:
            whether the training should end.
        """
        before = self.step
        self._seen.append((int(self._engine.global_steps), value))
        if self.step == self._engine.global_steps:
            others = self._engine.recparallel.writing  # a checkpoint may be on its way to the other folder
            self._checkpointer.save(sampler=sampler)
            self._checkpointer.wait()
            self._engine.recparallel.writing = others
        if RANK == 0:
            fresh = self._folder / f"{VALIDATIONS}.new"
            fresh.write_text(json.dumps(self._seen) + "\n")
            os.replace(fresh, self._folder / VALIDATIONS)
        if dist.get_rank() == 0 and before not in (0, self.step):
            shutil.rmtree(self._checkpointer.folder / f"step_{before}", ignore_errors=True)
        return self.is_over

    def load(self) -> None:
        """Give the engine the weights of the best model; collective."""
        if self.step not in (0, self._engine.global_steps):
            load_weights(self._engine, self._folder)

    def close(self) -> None:
        """Nothing is written any more."""
        self._checkpointer.close()

    def _found(self) -> list[tuple[int, float]]:
        """Earlier validations, if the best of them is there and is not ahead of the training."""
        path = self._folder / VALIDATIONS
        if not path.is_file() or not (self._folder / POINTER).is_file():
            return self._nothing()
        seen = [(step, value) for step, value in json.loads(path.read_text()) if step <= self._engine.global_steps]
        return seen if seen and latest(self._folder).name == f"step_{best_of(seen)[0]}" else self._nothing()

    def _nothing(self) -> list[tuple[int, float]]:
        for name in (POINTER, VALIDATIONS):
            (self._folder / name).unlink(missing_ok=True)
        return []


def best_of(seen: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The step and the value of the best validation, the first of equals."""
    return max(seen, key=lambda found: (found[1], -found[0]))
