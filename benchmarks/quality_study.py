"""Does a way to train replicas cost recommendations?

MovieLens-1M by the full-ranking protocol: the recipe on two local replicas, the same seeds for all ways. Users are compared in
pairs (``recparallel.evaluation.comparison``). Each training is kept under ``runs/quality`` as soon as it is done: the same
command goes on where it was stopped.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import capture_environment
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.recipes import train
from benchmarks.results import Results, row_of
from benchmarks.study_tables import markdown_table, write_between_markers
from benchmarks.workloads import DATA, data_folder
from recparallel.evaluation.comparison import Comparison, compare_paired, ndcg_gains

RUNS = Path("runs") / "quality"
_K, _SEEDS, _REPLICAS = 10, (1, 2, 3), 2
_MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 8,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Way:
    """One way to exchange.

    Attributes:
        name: what results call it.
        section: what the config has of it, under ``"recparallel"``; nothing is DeepSpeed's own exchange.
        alias: what the folder of its trainings is called, where another study calls the same way otherwise.
    """

    name: str
    section: dict[str, Any] = field(default_factory=dict)
    alias: str = ""


@dataclass(frozen=True)
class Study:
    """Ways, the first of which is the base.

    Attributes:
        name: of the benchmark, and of the table in ``document``.
        ways: all of them.
        document: has the table.
    """

    name: str
    ways: tuple[Way, ...]
    document: Path

    @property
    def base(self) -> Way:
        return self.ways[0]

    @property
    def columns(self) -> tuple[str, ...]:
        return ("exchange", "NDCG@10", f"against {self.base.name}", "90 % interval", "not inferior by 3 %", "minutes")


@dataclass(frozen=True)
class Training:
    """What all of them share.

    Attributes:
        epochs: passes over the training windows.
        length: of histories.
        arguments: of the recipe, further ones.
    """

    epochs: int = 6
    length: int = 50
    arguments: dict[str, str] = field(default_factory=lambda: {"dropout": "0.2", "learning_rate": "0.002"})


def run_study(study: Study, options: Options) -> int:
    """Train what is missing, compare, and print.

    Returns:
        0 if all trainings ended, whatever came out; 1 without the data.
    """
    folder = data_folder() / "ml-1m"
    if not folder.is_dir():
        console.print(f"MovieLens-1M is not in {folder}; set {DATA}")
        return 1
    training, seeds = Training(epochs=1 if options.quick else 6), _SEEDS[: 1 if options.quick else None]
    missing = [
        (way, seed)
        for seed in seeds
        for way in study.ways
        if options.fresh or not _ranks_file(way, seed, training).is_file()
    ]
    console.print(f"{len(missing)} trainings of {training.epochs} epochs to go")
    for number, (way, seed) in enumerate(missing, 1):
        begin = time.monotonic()
        _train(way, seed, training, folder)
        console.print(
            f"  {number}/{len(missing)} {way.name}, seed {seed}: {(time.monotonic() - begin) / 60:.1f} minutes"
        )
    compared = [(way, compare(study, way, seeds, training)) for way in study.ways]
    lines = [line_of(study, way, found, _minutes(way, seeds, training)) for way, found in compared]
    print_lines(study.columns, lines)
    if options.json:
        results = Results(benchmark=study.name, environment=capture_environment(options.command, emulated=False))
        for way, found in compared:
            values = [ndcg_gains(_ranks(way, seed, training), _K).mean().item() for seed in seeds]
            results.rows.append(row_of("ml-1m", "2 local replicas", way.name, f"ndcg@{_K}", "", values))
            if found is not None:
                results.rows.append(row_of("ml-1m", "2 local replicas", way.name, "lowest_change", "", [found.low]))
        results.save(options.json)
        if not options.quick and options.json.resolve().parent == study.document.parent.resolve() / "results":
            write_between_markers(study.document, markdown_table(study.columns, lines), name=study.name)
    return 0


def compare(study: Study, way: Way, seeds: Sequence[int], training: Training) -> Comparison | None:
    """Against the base; None for that itself."""
    if way is study.base:
        return None
    ours, theirs = (
        torch.stack([ndcg_gains(_ranks(side, seed, training), _K) for seed in seeds]) for side in (way, study.base)
    )
    return compare_paired(ours, theirs)


def line_of(study: Study, way: Way, found: Comparison | None, minutes: str) -> tuple[str, ...]:
    """Of the table."""
    if found is None:
        return (way.name, "", "", "", "", minutes)
    return (
        way.name,
        f"{found.mean:.4f} ({study.base.name} {found.base:.4f})",
        f"{found.change:+.1%}",
        f"{found.low:+.1%} … {found.high:+.1%}",
        "yes" if found.is_not_inferior else "not shown",
        minutes,
    )


def _config(way: Way) -> dict[str, Any]:
    return {
        "train_batch_size": 128,
        "train_micro_batch_size_per_gpu": 64,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True, "fused": True},
        },
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {"total_num_steps": "auto", "warmup_num_steps": "auto", "cos_min_ratio": 0.05},
        },
        "zero_allow_untested_optimizer": True,
        "recparallel": {"stages": 1, **way.section},
    }


def _train(way: Way, seed: int, training: Training, data: Path) -> None:
    """The recipe, as users launch it."""
    folder = _folder(way, seed, training)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(_MODEL))
    (folder / "deepspeed.json").write_text(json.dumps(_config(way)))
    arguments = {
        "deepspeed_config": str(folder / "deepspeed.json"),
        "model": str(folder / "model.json"),
        "dataset": "sequences",
        "data_dir": str(data),
        "max_length": str(training.length),
        "num_train_epochs": str(training.epochs),
        "eval_epochs": "0",
        "seed": str(seed),
        "report_to": "none",
        "output_dir": str(folder),
        **training.arguments,
    }
    train("train_rec.py", arguments, processes=_REPLICAS)


def _folder(way: Way, seed: int, training: Training) -> Path:
    return (
        RUNS
        / f"{(way.alias or way.name).replace(' ', '-').replace('%', 'percent')}-{training.epochs}x{training.length}-{seed}"
    )


def _ranks_file(way: Way, seed: int, training: Training) -> Path:
    return _folder(way, seed, training) / "test_ranks.json"


def _ranks(way: Way, seed: int, training: Training) -> torch.Tensor:
    return torch.tensor(json.loads(_ranks_file(way, seed, training).read_text()))


def _minutes(way: Way, seeds: Sequence[int], training: Training) -> str:
    """In training steps, of the slowest seed."""
    took = []
    for seed in seeds:
        metrics = json.loads((_folder(way, seed, training) / "metrics.json").read_text())
        took.append(128 * metrics["steps"] / metrics["sequences_per_s"] / 60)
    return f"{max(took):.1f}"
