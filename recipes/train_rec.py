"""Train an LLM recommender on an interaction log, cut over a pipeline and replicas, and rank the catalogue with it.

    deepspeed --num_accelerators 2 recipes/train_rec.py --deepspeed_config recipes/configs/pipeline_2.json \
        --dataset movielens-100k --data_dir PATH --output_dir runs/first

Works on CPUs (gloo) and GPUs (NCCL) without a change. Each option has a help text: ``python recipes/train_rec.py
--help``.
"""

import json
import logging
import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

import recparallel
from recparallel import config as settings
from recparallel import config_checks, events
from recparallel.checkpointing.export import ITEMS
from recparallel.data import load_log
from recparallel.data.histories import Histories
from recparallel.data.splits import Split, leave_one_out
from recparallel.engines.allocator import keep_freed_memory
from recparallel.engines.checkpoint import POINTER, Checkpointer, check_resumable, load_checkpoint
from recparallel.engines.launch import clear_reports, running, set_threads
from recparallel.engines.ranking import rank_targets
from recparallel.engines.step_summary import StepSummary
from recparallel.errors import ConfigError
from recparallel.evaluation.metrics import summarize
from recparallel.evaluation.popularity import evaluate_popularity, popularity_scores
from recparallel.models.zoo import Card, Head, find_card
from recparallel.plan import ParallelPlan

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "model_zoo"
CONFIG = ROOT / "recipes" / "configs" / "single.json"
PROTOCOL = "leave-one-out, last item as test, full ranking over the catalogue, seen items filtered out, ties against the target"
RANKS = "test_ranks.json"
"""The rank of every user's last item, in the order of users: what a comparison of two runs pairs."""
RANK = int(os.environ.get("RANK", "0"))


@dataclass
class ModelArguments:
    """What is trained. Left out, head options come from the model's card."""

    model: str = field(
        default="llama-tiny", metadata={"help": "a card of model_zoo/, a Hugging Face folder, or a hub name owner/name"}
    )
    tied: bool | None = field(default=None, metadata={"help": "score against the item embedding itself"})
    loss: str | None = field(default=None, metadata={"help": "cross_entropy, chunked_cross_entropy or sampled_softmax"})
    num_negatives: int | None = field(default=None, metadata={"help": "shared negatives of sampled_softmax"})
    dropout: float | None = field(default=None, metadata={"help": "of the item vectors and the trunk"})


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(default="synthetic", metadata={"help": "movielens-100k, movielens-1m, sequences or synthetic"})
    data_dir: str | None = field(default=None, metadata={"help": "folder with the dataset's original files"})
    max_length: int | None = field(
        default=None, metadata={"help": "positions per history; longer ones are cut into windows"}
    )
    max_malformed: float = field(default=0.001, metadata={"help": "share of malformed rows above which reading stops"})


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
    weight_decay: float = field(default=0.01, metadata={"help": 'fills "auto" in the config'})
    warmup_share: float = field(default=0.05, metadata={"help": "of all steps; fills the scheduler's warmup_num_steps"})
    eval_epochs: int = field(
        default=10, metadata={"help": "rank the validation items after every so many epochs; 0 never"}
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


Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


def main() -> None:
    """Parse, check everything that can be checked alone, then train."""
    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format=f"[rank {RANK}] %(levelname)s %(name)s: %(message)s")
    for noisy in ("DeepSpeed", "deepspeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    arguments: Arguments = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments)
    ).parse_args_into_dataclasses()  # type: ignore[arg-type]
    output_dir = Path(arguments[2].output_dir)
    if RANK == 0:
        clear_reports(output_dir)
    with running(output_dir):
        check_arguments(arguments, output_dir)
        set_threads(arguments[2].threads_per_rank)
        keep_freed_memory()
        train(arguments, output_dir)


def check_arguments(arguments: Arguments, output_dir: Path) -> None:
    """Refuse numbers out of range, and a folder that holds another run."""
    model_args, data_args, train_args = arguments
    for name, value, least in (
        ("num_train_epochs", train_args.num_train_epochs, 1),
        ("max_length", data_args.max_length, 1),
        ("num_negatives", model_args.num_negatives, 1),
        ("threads_per_rank", train_args.threads_per_rank, 1),
        ("logging_steps", train_args.logging_steps, 1),
        ("eval_epochs", train_args.eval_epochs, 0),
        ("save_steps", train_args.save_steps, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")
    if train_args.learning_rate is not None and train_args.learning_rate <= 0:
        raise ConfigError(f"--learning_rate must be above 0, got {train_args.learning_rate}")
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
        for old in (pointer, output_dir / "metrics.json"):
            old.unlink(missing_ok=True)


def train(arguments: Arguments, output_dir: Path) -> None:
    model_args, data_args, train_args = arguments
    card = find_card(model_args.model, ZOO)
    epochs = _first(train_args.num_train_epochs, card and card.num_train_epochs, 10)
    max_length = _first(data_args.max_length, card and card.data.max_length, 100)
    raw_config = settings.read_deepspeed_config(_first(train_args.deepspeed_config, card and ROOT / card.plan, CONFIG))
    section = settings.parse_config(raw_config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config_checks.check_together(raw_config, section, world_size=world_size)
    checkpoints = output_dir / "checkpoints"
    stored = None
    if train_args.resume:
        stored = check_resumable(
            checkpoints,
            stages=section.stages,
            tensor=section.tensor,
            replicas=section.replicas(world_size),
            zero_stage=config_checks.zero_stage(raw_config),
            codec=section.compression.codec if section.compression else "none",
        ).plan

    log = load_log(data_args.dataset, data_args.data_dir, max_malformed=data_args.max_malformed)
    split = leave_one_out(Histories.from_log(log))
    windows = split.train_windows(max_length)
    model = build_model(model_args, card, split)
    steps_per_epoch = -(-len(windows) // batch_size(raw_config, world_size))
    total_steps = train_args.max_steps if train_args.max_steps > 0 else steps_per_epoch * epochs
    config = complete_config(raw_config, train_args, card, total_steps)
    engine, _, loader, _ = recparallel.initialize(
        model=model,
        config=config,
        training_data=windows,
        max_length=max_length,
        partition=stored.partition if stored and fits(stored, section) else None,
    )
    if train_args.resume:
        loader.sampler.load_state_dict(load_checkpoint(engine, checkpoints))
    describe(split, engine)

    if RANK == 0:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / ITEMS).write_text(json.dumps(split.histories.item_names[1:]))
    with ExitStack() as stack:
        tracker = make_tracker(train_args, output_dir, arguments, config, engine) if RANK == 0 else None
        if tracker is not None:
            stack.enter_context(events.subscribe(tracker))
        losses = LossFile(output_dir / "losses.jsonl", resume=train_args.resume) if RANK == 0 else None
        if losses is not None:
            stack.enter_context(events.subscribe(losses))
        if RANK == 0:
            stack.enter_context(events.subscribe(tell_decisions))
        summary = StepSummary()
        stack.enter_context(events.subscribe(summary))
        checkpointer = Checkpointer(engine, checkpoints)
        fit = Fit(engine, loader, split, train_args, max_length, checkpointer, tracker, summary)
        seconds, sequences = fit.run(total_steps)
        checkpointer.save(sampler=loader.sampler.state_dict())
        ranks = rank_rows(engine, split, "test", max_length)
        metrics = summarize(ranks, ks=(10,))
        popularity = evaluate_popularity(split, "test", max_length=max_length)
        result = {
            "hr@10": metrics["HR@10"],
            "ndcg@10": metrics["NDCG@10"],
            "popularity": {"hr@10": popularity["HR@10"], "ndcg@10": popularity["NDCG@10"]},
            "sequences_per_s": sequences / seconds if seconds else None,
            "plan": engine.recparallel.plan.model_dump(mode="json"),
            "protocol": f"{PROTOCOL}; histories of at most {max_length}",
            "steps": engine.global_steps,
        }
        if RANK == 0:
            (output_dir / RANKS).write_text(json.dumps(ranks.tolist()))
            (output_dir / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
            if tracker is not None:
                tracker.finish({key: value for key, value in result.items() if key != "plan"})
        checkpointer.close()
        if RANK == 0:
            conclude(result, output_dir)


def fits(stored: ParallelPlan, section: settings.RecParallelConfig) -> bool:
    """Whether the stored cut is one that the config asks for; another plan is cut anew."""
    same = (stored.pipeline, stored.tensor) == (section.stages, section.tensor)
    same = same and stored.partition.method == section.partition.method
    return same and bool(stored.partition.spread) == section.spread_head


def _first(*values: Any) -> Any:
    """The first that is not None: the argument, the card's, the default."""
    return next(value for value in values if value is not None)


def build_model(model_args: ModelArguments, card: Card | None, split: Split) -> recparallel.Recommender:
    """The recommender that the arguments name; options of the head come from the card where they were left out."""
    head = card.head if card else Head()
    loss = model_args.loss or head.loss
    options: dict[str, Any] = dict(head.loss_options) if loss == head.loss else {}
    if loss == "sampled_softmax":
        options["item_counts"] = popularity_scores(split)
        options |= {} if model_args.num_negatives is None else {"num_negatives": model_args.num_negatives}
    elif model_args.num_negatives is not None:
        raise ConfigError(
            f"--num_negatives {model_args.num_negatives} goes with --loss sampled_softmax, the loss is {loss}"
        )
    return recparallel.build_recommender(
        card.architecture if card else model_args.model,
        num_items=split.histories.num_items,
        tied=head.tied if model_args.tied is None else model_args.tied,
        loss=loss,
        loss_options=options,
        dropout=head.dropout if model_args.dropout is None else model_args.dropout,
    )


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
    learning_rate = _first(train_args.learning_rate, card and card.learning_rate, 1e-3)
    return settings.fill_auto(
        config,
        {
            "lr": learning_rate,
            "warmup_max_lr": learning_rate,
            "weight_decay": train_args.weight_decay,
            "total_num_steps": max(total_steps, 2),
            "warmup_num_steps": max(2, round(train_args.warmup_share * total_steps)),
        },
    )


@dataclass
class Fit:
    """The training loop, and what it needs."""

    engine: Any
    loader: Any
    split: Split
    settings: TrainingArguments
    max_length: int
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
        metrics = summarize(rank_rows(self.engine, self.split, "valid", self.max_length), ks=(10,))
        if RANK == 0:
            epoch = self.loader.sampler.epoch
            bar.write(f"epoch {epoch}: valid HR@10 {metrics['HR@10']:.4f}  NDCG@10 {metrics['NDCG@10']:.4f}")
        if self.tracker is not None:
            self.tracker.log({f"valid/{name}": value for name, value in metrics.items()}, step=self.engine.global_steps)


def rank_rows(engine: Any, split: Split, which: str, max_length: int) -> torch.Tensor:
    """Rank of every user's target, in the order of users."""

    def progress(batches: Any) -> Any:
        return tqdm(batches, desc=f"rank {which}", unit="batch", leave=False, disable=RANK != 0)

    rows = split.evaluation(which, max_length)  # type: ignore[arg-type]
    return rank_targets(engine, rows, max_length=max_length, progress=progress)


def tell_decisions(event: events.Event) -> None:
    """A line above the progress bar for layers that moved and what came of it, and for how gradients will be exchanged."""
    if isinstance(event, (events.Move, events.MoveOutcome, events.ExchangeChoice)):
        tqdm.write(str(event))


class LossFile:
    """One JSON line a step, so that runs can be compared exactly."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a" if resume else "w")

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            self.file.write(json.dumps({"step": event.step, "loss": event.loss}) + "\n")
            self.file.flush()


def make_tracker(
    train_args: TrainingArguments, output_dir: Path, arguments: Arguments, config: dict[str, Any], engine: Any
) -> Any:
    if train_args.report_to == "none":
        return None
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


def describe(split: Split, engine: Any) -> None:
    if RANK == 0:
        counts = split.histories.describe()
        plan = engine.recparallel.plan
        print(
            f"{counts['num_users']:,} users, {counts['num_items']:,} items, {counts['num_interactions']:,} interactions; "
            f"pipeline {plan.pipeline} × tensor {plan.tensor} × data {plan.data}, "
            f"{plan.num_micro_batches} micro-batches of {plan.micro_batch}, ZeRO-{plan.zero_stage}, {plan.dtype}, "
            f"exchange: {plan.compression}",
            flush=True,
        )


def conclude(result: dict[str, Any], output_dir: Path) -> None:
    speed = result["sequences_per_s"]
    print(f"test       HR@10 {result['hr@10']:.4f}  NDCG@10 {result['ndcg@10']:.4f}")
    print(f"popularity HR@10 {result['popularity']['hr@10']:.4f}  NDCG@10 {result['popularity']['ndcg@10']:.4f}")
    print(f"protocol: {result['protocol']}")
    print(f"{result['steps']} steps" + (f", {speed:.0f} sequences/s" if speed else ""))
    print(
        f"written to {output_dir}/: metrics.json, {RANKS}, losses.jsonl, items.json, checkpoints/, wandb/", flush=True
    )


if __name__ == "__main__":
    main()
