"""The training loop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from recparallel.data.batching import sequences_of
from recparallel.data.markers import IGNORE
from recparallel.engines.checkpoint import Checkpointer
from recparallel.engines.places import times_own_share
from recparallel.engines.step_summary import StepSummary
from recparallel.training.arguments import RANK, TrainingArguments
from recparallel.training.best import Best
from recparallel.training.gate import Gate


@dataclass
class Pace:
    """What training steps took and did, over all replicas: each row is taken to have as much as this replica's.

    Attributes:
        seconds: in them.
        sequences: histories.
        targets: predicted items.
        positions: of all rows, padding included.
    """

    seconds: float = 0.0
    sequences: float = 0
    targets: float = 0
    positions: float = 0

    def add(self, seconds: float, micro_batches: Sequence[Any], times: float) -> None:
        """One step, by the micro-batches of one replica, which are a part of all, ``times`` as large."""
        self.seconds += seconds
        self.sequences += times * sum(map(sequences_of, micro_batches))
        self.targets += times * sum(int((batch[1] != IGNORE).sum()) for batch in micro_batches)
        self.positions += times * sum(batch[0].numel() for batch in micro_batches)

    def scaled(self, share: float) -> "Pace":
        """Where replicas run at their own pace: what all did is ``share`` of what they would have done at this one's."""
        scale = {name: share * getattr(self, name) for name in ("sequences", "targets", "positions")}
        return replace(self, **scale)

    def summary(self) -> dict[str, float | None]:
        """Rates, and the share of positions without a target (padding, and what a prompt asks with); None without a step."""
        return {
            "sequences_per_s": self.sequences / self.seconds if self.seconds else None,
            "targets_per_s": self.targets / self.seconds if self.seconds else None,
            "without_target": 1 - self.targets / self.positions if self.positions else None,
        }


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
        best: keeps the best model by the metric ``watched``, and says when to end; None keeps none.
        gate: leaves the mode of data parallelism where that metric falls; None watches nothing.
    """

    engine: Any
    loader: Any
    settings: TrainingArguments
    validate: Callable[[Any], dict[str, float]]
    checkpointer: Checkpointer
    tracker: Any
    summary: StepSummary
    best: Best | None = None
    watched: str = ""
    gate: Gate | None = None

    def run(self, total_steps: int) -> Pace:
        """Train up to ``total_steps`` of the training's clock."""
        engine, pace = self.engine, Pace()
        first, own = engine.recparallel.begin(), engine.global_steps
        step = first
        bar = tqdm(total=total_steps, initial=step, desc="train", unit="step", mininterval=0.5, disable=RANK != 0)
        with bar:
            while not self._is_over(step, total_steps):
                for micro_batches in self.loader:
                    start = time.perf_counter()
                    loss = engine.train_batch(iter(micro_batches))
                    pace.add(time.perf_counter() - start, micro_batches, times_own_share(engine))
                    bar.set_postfix(epoch=self.loader.sampler.epoch, loss=f"{loss.item():.4f}")
                    self._log_costs()
                    step = self._by_the_clock(bar, step, total_steps)
                    if self._is_over(step, total_steps):
                        break
        return pace.scaled((step - first) / (engine.global_steps - own)) if step > first else pace

    def _by_the_clock(self, bar: Any, step: int, total_steps: int) -> int:
        """Save and validate where it is time to; replicas that meet for it move the clock on. What it shows then."""
        while (now := self.engine.recparallel.progress) != step:
            bar.update(now - step)
            before, step = self.engine.recparallel.last_seen(step), now
            if _passes(self.settings.save_steps, before, step):
                self.engine.recparallel.meet()  # until then some have read what is not counted yet
                self.checkpointer.save(sampler=self.loader.sampler.state_dict())
            if self._due(before, step, total_steps):
                self._validate(bar, step)
        return step

    def _is_over(self, step: int, total_steps: int) -> bool:
        return step >= total_steps or (self.best is not None and self.best.is_over)

    def _due(self, before: int, step: int, total_steps: int) -> bool:
        """Whether validation is."""
        if step >= total_steps:
            return self.best is not None  # the test follows; only the best model must still be known
        return _passes(self.settings.eval_epochs * self.loader.sampler.steps_per_epoch, before, step)

    def _log_costs(self) -> None:
        own = self.engine.global_steps
        if own % self.settings.logging_steps == 0:
            ranks = self.summary.gather()
            if self.tracker is not None:
                self.tracker.log_ranks(ranks, step=own)

    def _validate(self, bar: Any, step: int) -> None:
        metrics = self.engine.recparallel.as_first(self.validate(self.engine))
        if RANK == 0:
            told = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            bar.write(f"epoch {step // self.loader.sampler.steps_per_epoch}: valid {told}")
        if self.tracker is not None:
            self.tracker.log({f"valid/{name}": value for name, value in metrics.items()}, step=self.engine.global_steps)
        if self.gate is not None:
            self.gate.judge(metrics[self.watched])
        if self.best is not None:
            self.best.judge(metrics[self.watched], self.loader.sampler.state_dict())


def _passes(every: int, before: int, step: int) -> bool:
    """Whether a multiple of ``every`` lies behind ``before`` and not behind ``step``; 0 has none."""
    return bool(every) and step // every > before // every
