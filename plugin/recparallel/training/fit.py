"""The training loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from recparallel.engines.checkpoint import Checkpointer
from recparallel.engines.step_summary import StepSummary
from recparallel.training.arguments import RANK, TrainingArguments


@dataclass
class Fit:
    """The training loop, and what it needs.

    Attributes:
        engine, loader: of ``recparallel.initialize``.
        settings: when to validate, save and log.
        validate: metrics of the validation data, by name; collective, the same on every rank.
        checkpointer: saves.
        tracker: of rank 0 alone; None logs nothing.
        summary: of what steps cost.
    """

    engine: Any
    loader: Any
    settings: TrainingArguments
    validate: Callable[[Any], dict[str, float]]
    checkpointer: Checkpointer
    tracker: Any
    summary: StepSummary

    def run(self, total_steps: int) -> tuple[float, int]:
        """Train up to ``total_steps``. Returns the seconds spent in training steps and the sequences trained in them."""
        engine, sampler = self.engine, self.loader.sampler
        seconds, sequences = 0.0, 0
        bar = tqdm(
            total=total_steps,
            initial=engine.global_steps,
            desc="train",
            unit="step",
            mininterval=0.5,
            disable=RANK != 0,
        )
        with bar:
            while engine.global_steps < total_steps:
                for micro_batches in self.loader:
                    start = time.perf_counter()
                    loss = engine.train_batch(iter(micro_batches))
                    seconds += time.perf_counter() - start
                    sequences += engine.train_batch_size()
                    bar.update()
                    bar.set_postfix(epoch=sampler.epoch, loss=f"{loss.item():.4f}")
                    self._after_step()
                    if engine.global_steps >= total_steps:
                        break
                every = self.settings.eval_epochs
                if every and sampler.epoch % every == 0 and engine.global_steps < total_steps:
                    self._validate(bar)
        return seconds, sequences

    def _after_step(self) -> None:
        step = self.engine.global_steps
        if step % self.settings.logging_steps == 0:
            ranks = self.summary.gather()
            if self.tracker is not None:
                self.tracker.log_ranks(ranks, step=step)
        if self.settings.save_steps and step % self.settings.save_steps == 0:
            self.checkpointer.save(sampler=self.loader.sampler.state_dict())

    def _validate(self, bar: Any) -> None:
        metrics = self.validate(self.engine)
        if RANK == 0:
            told = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            bar.write(f"epoch {self.loader.sampler.epoch}: valid {told}")
        if self.tracker is not None:
            self.tracker.log({f"valid/{name}": value for name, value in metrics.items()}, step=self.engine.global_steps)
