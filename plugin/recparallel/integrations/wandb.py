"""Track a run in Weights & Biases: losses, speed, what every rank's steps cost, the plan and the cut.

Without an API key the run is kept offline (``wandb sync`` uploads it later); nobody is ever asked for one.
"""

import os
from pathlib import Path
from typing import Any

import wandb

from recparallel.events import (
    Event,
    ExchangeChoice,
    ExchangeLook,
    FellBack,
    Move,
    MoveOutcome,
    ReplicaExchange,
    ReplicasFormed,
    SharesChanged,
    StepDone,
)

_CHOICES = ["behind step", "elements", "way", "predicted seconds", "measured seconds"]


class WandbTracker:
    """A W&B run that logs every step as it is done. Make it on one rank, and subscribe it to the events.

    Args:
        folder: where wandb keeps the run's files.
        config: what the run was started with.
        project: W&B project.
    """

    def __init__(self, folder: Path, *, config: dict[str, Any], project: str = "recparallel") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._step, self._choices, self._is_told = 0, list[list[Any]](), True
        self.run = wandb.init(
            project=project,
            dir=str(folder),
            config=config,
            mode=_mode(),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def __call__(self, event: Event) -> None:
        """An event subscriber: loss and speed of each step; layers that moved, what it cost, and what came of it; how gradients are
        exchanged, where that is chosen; what replicas that train apart have exchanged."""
        if isinstance(event, StepDone):
            self._step = event.step
            speed = event.num_sequences / event.seconds
            self.run.log({"loss": event.loss, "sequences_per_s": speed, **self._table_of_choices()}, step=event.step)
        elif isinstance(event, ExchangeChoice):
            self._note(event.size, event.way, dict(event.predicted)[event.way], None)
        elif isinstance(event, ExchangeLook):
            self._note(event.size, event.way, event.predicted_seconds, event.measured_seconds)
        elif isinstance(event, Move):
            sizes = {f"layers/stage_{s}": b - a for s, (a, b) in enumerate(zip(event.after, event.after[1:]))}
            moved = {} if event.error else {"move/seconds": event.seconds, "move/predicted_gain": event.gain, **sizes}
            self.run.log({**moved, "move/note": str(event)}, step=event.step)
        elif isinstance(event, MoveOutcome):
            self.run.log({"move/share_saved": event.share_saved}, step=event.step)
        elif isinstance(event, FellBack):
            self.run.log({"replicas/fell_back": str(event)}, step=self._step)
        elif isinstance(event, SharesChanged):
            self.run.log({f"shares/rows_{number}": rows for number, rows in enumerate(event.rows)}, step=event.step)
        elif isinstance(event, ReplicasFormed):
            self.run.log({"replicas/count": event.count}, step=self._step)
        elif isinstance(event, ReplicaExchange):
            targets = {f"replicas/targets_{number}": count for number, count in enumerate(event.targets)}
            targets |= {f"replicas/steps_{number}": count for number, count in enumerate(event.steps)}
            targets["replicas/staleness"] = wandb.Histogram(event.staleness)
            costs = {name: getattr(event, name) for name in ("late", "wire_bytes", "dense_bytes", "seconds", "waited")}
            self.run.log({**targets, **{f"replicas/{name}": cost for name, cost in costs.items()}}, step=event.step)

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Metrics that are not events, such as an evaluation's."""
        self.run.log(values, step=step)

    def log_ranks(self, ranks: list[dict[str, float]], *, step: int) -> None:
        """What a step cost on each rank, from :class:`~recparallel.engines.step_summary.StepSummary`, as ``rank_N/…``."""
        costs = {f"rank_{rank}/{name}": value for rank, sums in enumerate(ranks) for name, value in sums.items()}
        self.run.log(costs, step=step)

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table, such as the cut."""
        self.run.log({name: wandb.Table(columns=columns, data=rows)}, step=0)

    def _note(self, *cells: Any) -> None:
        self._choices.append([self._step, *cells])
        self._is_told = False

    def _table_of_choices(self) -> dict[str, Any]:
        """All that were made so far, if there are new ones."""
        if self._is_told:
            return {}
        self._is_told = True
        return {"exchange/choices": wandb.Table(columns=_CHOICES, data=list(self._choices))}

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary and close the run."""
        self.run.summary.update(summary)
        self.run.finish()


def _mode() -> Any:
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if wandb.login(prompt=False) else "offline"
