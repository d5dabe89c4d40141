"""Options of a training that do not depend on the task, and the config that they complete."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recparallel import config as settings
from recparallel.engines.checkpoint import POINTER
from recparallel.errors import ConfigError
from recparallel.models.zoo import Card

RANK = int(os.environ.get("RANK", "0"))

BEST = "best"
"""Folder of an output folder: the best model, by the validations."""

VALIDATIONS = "validation.json"
"""There: steps and values of all validations."""

GATE = "gate.json"
"""In an output folder: what the gate of a data-parallel mode has seen."""


@dataclass
class TrainingArguments:
    """How it is trained. Batch sizes, precision, ZeRO, cuts and compression stand in the DeepSpeed config."""

    output_dir: str = field(metadata={"help": "where metrics, checkpoints and the W&B run are written"})
    deepspeed_config: str | None = field(
        default=None, metadata={"help": "DeepSpeed JSON with a recparallel section; by default the card's plan"}
    )
    num_train_epochs: int | None = field(default=None, metadata={"help": "passes over the training windows"})
    max_steps: int = field(default=-1, metadata={"help": "stop after this many optimizer steps in all"})
    learning_rate: float | None = field(default=None, metadata={"help": 'fills "auto" in the config'})
    weight_decay: float | None = field(default=None, metadata={"help": 'fills "auto" in the config'})
    warmup_share: float = field(default=0.05, metadata={"help": "of all steps; fills the scheduler's warmup_num_steps"})
    eval_epochs: int = field(
        default=10, metadata={"help": "rank the validation items after every so many epochs; 0 never"}
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "end after so many validations without a better one, and test the best model; 0 never ends early"
        },
    )
    save_steps: int = field(default=0, metadata={"help": "checkpoint after every so many steps; 0 only at the end"})
    logging_steps: int = field(
        default=10, metadata={"help": "gather what steps cost on every rank after so many of them"}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "start anew in a folder with an earlier run"})
    resume: bool = field(default=False, metadata={"help": "go on from the latest checkpoint in output_dir"})
    threads_per_rank: int | None = field(
        default=None, metadata={"help": "torch threads; by default an equal share of the cores"}
    )
    seed: int | None = field(default=None, metadata={"help": "overrides recparallel.seed of the config"})
    report_to: str = field(default="wandb", metadata={"help": "wandb (offline without a key) or none"})
    local_rank: int = field(default=-1, metadata={"help": "set by the launcher"})


def check_arguments(train_args: TrainingArguments, output_dir: Path, least: Mapping[str, tuple[Any, int]]) -> None:
    """Refuse numbers out of range, and a folder that holds another run.

    Args:
        train_args: of every task.
        output_dir: theirs.
        least: other options, by name: the value that was given, and the least that is allowed.

    Raises:
        ConfigError: says which option, what was given, and what is allowed.
    """
    own = {
        "num_train_epochs": (train_args.num_train_epochs, 1),
        "threads_per_rank": (train_args.threads_per_rank, 1),
        "logging_steps": (train_args.logging_steps, 1),
        "eval_epochs": (train_args.eval_epochs, 0),
        "save_steps": (train_args.save_steps, 0),
        "early_stopping_patience": (train_args.early_stopping_patience, 0),
    }
    for name, (value, allowed) in {**own, **least}.items():
        if value is not None and value < allowed:
            raise ConfigError(f"--{name} must be at least {allowed}, got {value}")
    if train_args.learning_rate is not None and train_args.learning_rate <= 0:
        raise ConfigError(f"--learning_rate must be above 0, got {train_args.learning_rate}")
    if train_args.early_stopping_patience and not train_args.eval_epochs:
        raise ConfigError(
            f"--early_stopping_patience {train_args.early_stopping_patience} counts validations, and --eval_epochs 0 makes none"
        )
    if train_args.report_to not in ("wandb", "none"):
        raise ConfigError(f"--report_to {train_args.report_to!r}; allowed are wandb and none")
    if train_args.resume and train_args.overwrite_output_dir:
        raise ConfigError("--resume goes on with what is in output_dir, --overwrite_output_dir removes it; use one")
    pointer = output_dir / "checkpoints" / POINTER
    if pointer.exists() and not train_args.resume and not train_args.overwrite_output_dir:
        raise ConfigError(
            f"{output_dir} holds checkpoints of an earlier run; go on with --resume, start anew with "
            "--overwrite_output_dir, or name another --output_dir"
        )
    if train_args.overwrite_output_dir and RANK == 0:
        best = output_dir / BEST
        for old in (pointer, best / POINTER, best / VALIDATIONS, output_dir / "metrics.json", output_dir / GATE):
            old.unlink(missing_ok=True)
        for replica in pointer.parent.glob("replica_*"):
            shutil.rmtree(replica)


def first_given(*values: Any) -> Any:
    """The first that is not None: the argument, the card's, the default."""
    return next(value for value in values if value is not None)


def batch_size(config: dict[str, Any], world_size: int) -> int:
    """Sequences of a global batch."""
    if "train_batch_size" in config:
        return int(config["train_batch_size"])
    replicas = settings.parse_config(config).replicas(world_size)
    return int(config["train_micro_batch_size_per_gpu"]) * int(config.get("gradient_accumulation_steps", 1)) * replicas


def complete_config(
    config: dict[str, Any], train_args: TrainingArguments, card: Card | None, total_steps: int
) -> dict[str, Any]:
    """Fill in every "auto", and the seed."""
    if train_args.seed is not None:
        config = {**config, settings.SECTION: {**config.get(settings.SECTION, {}), "seed": train_args.seed}}
    learning_rate = first_given(train_args.learning_rate, card and card.learning_rate, 1e-3)
    return settings.fill_auto(
        config,
        {
            "lr": learning_rate,
            "warmup_max_lr": learning_rate,
            "weight_decay": first_given(train_args.weight_decay, card and card.weight_decay, 0.01),
            "total_num_steps": max(total_steps, 2),
            "warmup_num_steps": max(2, round(train_args.warmup_share * total_steps)),
        },
    )
