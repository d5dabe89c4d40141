"""From a command line to a training: parse, check everything that can be checked alone, and start."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from recparallel.engines.allocator import keep_freed_memory
from recparallel.engines.launch import clear_reports, running, set_threads
from recparallel.training.arguments import RANK, TrainingArguments

Arguments = tuple[Any, ...]


def start(
    kinds: Sequence[type], *, check: Callable[[Arguments, Path], None], train: Callable[[Arguments, Path], None]
) -> None:
    """Run a recipe.

    Args:
        kinds: dataclasses of its options, :class:`TrainingArguments` the last of them.
        check: refuses options; alone, before anything is read.
        train: does the work; errors end every rank, and name the first to fail.
    """
    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format=f"[rank {RANK}] %(levelname)s %(name)s: %(message)s")
    for noisy in ("DeepSpeed", "deepspeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    arguments: Arguments = HfArgumentParser(list(kinds)).parse_args_into_dataclasses()  # type: ignore[arg-type]
    settings: TrainingArguments = arguments[-1]
    output_dir = Path(settings.output_dir)
    if RANK == 0:
        clear_reports(output_dir)
    with running(output_dir):
        check(arguments, output_dir)
        set_threads(settings.threads_per_rank)
        keep_freed_memory()
        train(arguments, output_dir)
