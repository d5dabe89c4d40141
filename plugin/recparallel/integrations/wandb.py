"""Track a run in Weights & Biases: phase times, wire bytes, loss, the plan and the cut.

Without an API key the run is kept offline (``wandb sync`` uploads it later); nobody is ever asked for one.
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import wandb

from recparallel.events import Event, Exchange, Phase, StepDone, Transfer


class WandbTracker:
    """Collects events of a step and logs them when the step is done. Make it on one rank.

    Args:
        folder: where wandb keeps the run's files.
        config: what the run was started with.
        project: W&B project.
    """

    def __init__(self, folder: Path, *, config: dict[str, Any], project: str = "recparallel") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=project,
            dir=str(folder),
            config=config,
            mode=_mode(),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._sums: dict[str, float] = defaultdict(float)

    def __call__(self, event: Event) -> None:
        """An event subscriber: phases and exchanges add up until the step is done."""
        if isinstance(event, Phase):
            self._sums[f"phase/{event.name}_s"] += event.seconds
        elif isinstance(event, Exchange):
            self._sums["exchange/wire_bytes"] += event.wire_bytes
            self._sums["exchange/dense_bytes"] += event.dense_bytes
            self._sums["exchange/seconds"] += event.seconds
        elif isinstance(event, Transfer):
            self._sums["boundary/sent_bytes"] += event.num_bytes
        elif isinstance(event, StepDone):
            self._sums["loss"] = event.loss
            self._sums["sequences_per_s"] = event.num_sequences / event.seconds
            self.run.log(dict(self._sums), step=event.step)
            self._sums.clear()

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Metrics that are not events, such as an evaluation's."""
        self.run.log(values, step=step)

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table, such as the cut."""
        self.run.log({name: wandb.Table(columns=columns, data=rows)}, step=0)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary and close the run."""
        self.run.summary.update(summary)
        self.run.finish()


def _mode() -> Any:
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if wandb.login(prompt=False) else "offline"
