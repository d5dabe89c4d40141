"""What a training writes while it runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recparallel import events


class LossFile:
    """One JSON line a step, so that runs can be compared exactly."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a" if resume else "w")

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            self.file.write(json.dumps({"step": event.step, "loss": event.loss}) + "\n")
            self.file.flush()


def tell_decisions(event: events.Event) -> None:
    """A line above the progress bar for layers that moved and what came of it, and for how gradients will be exchanged; and for
    a mode of data parallelism that replicas have left."""
    if isinstance(
        event,
        (
            events.Move,
            events.MoveOutcome,
            events.ExchangeChoice,
            events.FellBack,
            events.ReplicasFormed,
            events.SharesChanged,
        ),
    ):
        tqdm.write(str(event))


def make_tracker(output_dir: Path, arguments: Sequence[Any], config: dict[str, Any], engine: Any) -> Any:
    """A W&B run, offline without a key, with the arguments (dataclasses), the config and the plan."""
    from recparallel.integrations.wandb import WandbTracker

    plan = engine.recparallel.plan
    everything = {
        "arguments": [asdict(part) for part in arguments],
        "deepspeed": config,
        "plan": plan.model_dump(mode="json"),
    }
    tracker = WandbTracker(output_dir, config=everything)
    stages = zip(
        plan.partition.bounds, plan.partition.bounds[1:], plan.partition.stage_seconds or [None] * plan.pipeline
    )
    tracker.log_table(
        "cut", ["stage", "first layer", "end", "predicted seconds"], [[s, *row] for s, row in enumerate(stages)]
    )
    return tracker
