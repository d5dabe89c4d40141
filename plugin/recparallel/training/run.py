"""One training from its config to its metrics, whatever the task."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recparallel import config as settings
from recparallel import config_checks, events
from recparallel.data.windows import Windows
from recparallel.engines.checkpoint import Checkpointer, check_resumable, load_checkpoint
from recparallel.engines.deepspeed import initialize
from recparallel.engines.loading import rows_per_epoch
from recparallel.engines.step_summary import StepSummary
from recparallel.errors import ConfigError
from recparallel.models.recommender import Recommender
from recparallel.models.zoo import Card
from recparallel.plan import ParallelPlan
from recparallel.training.arguments import BEST, RANK, TrainingArguments, batch_size, complete_config, first_given
from recparallel.training.best import Best
from recparallel.training.fit import Fit
from recparallel.training.gate import Gate
from recparallel.training.output import LossFile, make_tracker, tell_decisions


@dataclass(frozen=True)
class Setup:
    """What is known before any data is read.

    Attributes:
        config: the DeepSpeed config, ``"auto"`` not yet filled in.
        section: its ``"recparallel"`` section.
        world_size: ranks of the launch.
        card: of the model; None for a model without one.
        stored: the plan of the checkpoint that is resumed from.
    """

    config: dict[str, Any]
    section: settings.RecParallelConfig
    world_size: int
    card: Card | None
    stored: ParallelPlan | None


@dataclass(frozen=True)
class Task:
    """What is trained, and how it is judged.

    Attributes:
        model: as ``build_recommender`` makes it.
        windows: to train on.
        max_length: positions of a row.
        began: is told the engine, before the first step; on every rank.
        validate: metrics by name, from an engine; collective.
        test: what ``metrics.json`` has of the end, from an engine; collective.
        watched: the metric of ``validate`` by which one model is better than another.
    """

    model: Recommender
    windows: Windows
    max_length: int
    began: Callable[[Any], None]
    validate: Callable[[Any], dict[str, float]]
    test: Callable[[Any], dict[str, Any]]
    watched: str


def set_up(train_args: TrainingArguments, card: Card | None, output_dir: Path, *, default: Path, root: Path) -> Setup:
    """Read and check the config, and the checkpoint to resume from.

    Args:
        train_args: name the config; else the card does, relative to ``root``; else it is ``default``.
        card: of the model.
        output_dir: has the checkpoints.

    Raises:
        ConfigError: the config is wrong, or does not go with the launch.
        CheckpointError: there is nothing to resume from, or it belongs to another training.
    """
    config = settings.read_deepspeed_config(
        first_given(train_args.deepspeed_config, root / card.plan if card else None, default)
    )
    section = settings.parse_config(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config_checks.check_together(config, section, world_size=world_size)
    if section.data_parallel.apart and train_args.early_stopping_patience:
        raise ConfigError(
            f"--early_stopping_patience {train_args.early_stopping_patience} does not run with recparallel.data_parallel.mode "
            f"{section.data_parallel.mode!r} yet; use 0, or 'synchronous'"
        )
    if section.data_parallel.gate is not None and not train_args.eval_epochs:
        raise ConfigError("recparallel.data_parallel.gate compares validations, and --eval_epochs 0 makes none")
    stored = None
    if train_args.resume:
        stored = check_resumable(
            output_dir / "checkpoints",
            stages=section.stages,
            tensor=section.tensor,
            replicas=section.replicas(world_size) // section.worlds(world_size),
            zero_stage=config_checks.zero_stage(config),
            codec=section.compression.codec if section.compression else "none",
        ).plan
    return Setup(config, section, world_size, card, stored)


def run(
    task: Task, setup: Setup, train_args: TrainingArguments, output_dir: Path, arguments: Sequence[Any]
) -> dict[str, Any]:
    """Train, test, and write ``metrics.json``; collective.

    Args:
        task: what.
        setup: how.
        train_args: how long, and when to validate, save and log.
        output_dir: where everything is written.
        arguments: all options, for the tracker.

    Returns:
        What ``metrics.json`` has.
    """
    rows = rows_per_epoch(task.windows, setup.section, max_length=task.max_length)
    steps_per_epoch = -(-rows // batch_size(setup.config, setup.world_size))
    epochs = first_given(train_args.num_train_epochs, setup.card and setup.card.num_train_epochs, 10)
    total_steps = train_args.max_steps if train_args.max_steps > 0 else steps_per_epoch * epochs
    config = complete_config(setup.config, train_args, setup.card, total_steps)
    engine, _, loader, _ = initialize(
        model=task.model,
        config=config,
        training_data=task.windows,
        max_length=task.max_length,
        partition=setup.stored.partition if setup.stored and _fits(setup.stored, setup.section) else None,
    )
    checkpoints = output_dir / "checkpoints"
    if train_args.resume:
        loader.sampler.load_state_dict(load_checkpoint(engine, checkpoints))
    task.began(engine)
    tracker = None
    with ExitStack() as stack:
        if RANK == 0:
            if train_args.report_to == "wandb":
                tracker = make_tracker(output_dir, arguments, config, engine)
                stack.enter_context(events.subscribe(tracker))
            losses = LossFile(output_dir / "losses.jsonl", resume=train_args.resume)
            for told in (losses, tell_decisions):
                stack.enter_context(events.subscribe(told))
        summary = StepSummary()
        stack.enter_context(events.subscribe(summary))
        checkpointer = Checkpointer(engine, checkpoints)
        patience = train_args.early_stopping_patience
        best = Best(engine, output_dir / BEST, patience, resume=train_args.resume) if patience else None
        gate_config = setup.section.data_parallel.gate
        gate = None if gate_config is None else Gate(engine, gate_config, output_dir, resume=train_args.resume)
        fit = Fit(engine, loader, train_args, task.validate, checkpointer, tracker, summary, best, task.watched, gate)
        pace = fit.run(total_steps)
        engine.recparallel.meet()
        checkpointer.save(sampler=loader.sampler.state_dict())
        checkpointer.wait()
        engine.recparallel.end()
        if best is not None:
            best.load()
        result = {
            **task.test(engine),
            **pace.summary(),
            "plan": engine.recparallel.plan.model_dump(mode="json"),
            "steps": engine.recparallel.progress,
            **({"best_step": best.step} if best is not None and best.step else {}),
        }
        if RANK == 0:
            (output_dir / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
            if tracker is not None:
                tracker.finish({key: value for key, value in result.items() if key != "plan"})
        checkpointer.close()
        if best is not None:
            best.close()
    return result


def describe_plan(plan: ParallelPlan) -> str:
    """One line: how the work is divided."""
    apart = f" × {plan.replicas} replicas apart ({plan.data_parallel})" if plan.replicas > 1 else ""
    return (
        f"pipeline {plan.pipeline} × tensor {plan.tensor} × data {plan.data}{apart}, "
        f"{plan.num_micro_batches} micro-batches of {plan.micro_batch}, ZeRO-{plan.zero_stage}, {plan.dtype}, "
        f"exchange: {plan.compression}"
    )


def _fits(stored: ParallelPlan, section: settings.RecParallelConfig) -> bool:
    """Whether the stored cut is one that the config asks for; another plan is cut anew."""
    same = (stored.pipeline, stored.tensor) == (section.stages, section.tensor)
    same = same and stored.partition.method == section.partition.method
    return same and bool(stored.partition.spread) == section.spread_head
