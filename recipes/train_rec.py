"""Train an LLM recommender on an interaction log, cut over a pipeline and replicas, and rank the catalogue with it.

    deepspeed --num_accelerators 2 recipes/train_rec.py --deepspeed_config recipes/configs/pipeline_2.json \
        --dataset movielens-100k --data_dir PATH --output_dir runs/first

Works on CPUs (gloo) and GPUs (NCCL) without a change. Each option has a help text: ``python recipes/train_rec.py
--help``.
"""

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import recparallel
from recparallel import registry
from recparallel.checkpointing.export import ITEMS
from recparallel.data.cleaning import Filters
from recparallel.data.preparation import parse_options, prepare
from recparallel.data.prepared import Manifest, Prepared
from recparallel.data.protocols import Protocol
from recparallel.data.splits.base import Part, Split
from recparallel.engines.ranking import rank_targets
from recparallel.errors import ConfigError
from recparallel.evaluation.metrics import summarize
from recparallel.evaluation.popularity import evaluate_popularity, popularity_scores
from recparallel.models.zoo import Card, Head, find_card
from recparallel.training.arguments import RANK, TrainingArguments, check_arguments, first_given
from recparallel.training.identity import check_same_data
from recparallel.training.run import Task, describe_plan, run, set_up
from recparallel.training.start import start

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "model_zoo"
CONFIG = ROOT / "recipes" / "configs" / "single.json"
RANKS = "test_ranks.json"
"""The rank of every target of the test, in the order of users: what a comparison of two runs pairs."""


@dataclass
class ModelArguments:
    """What is trained. Left out, head options come from the model's card."""

    model: str = field(
        default="llama-tiny", metadata={"help": "a card of model_zoo/, a Hugging Face folder, or a hub name owner/name"}
    )
    tied: bool | None = field(default=None, metadata={"help": "score against the item embedding itself"})
    loss: str | None = field(
        default=None, metadata={"help": f"one of {', '.join(sorted({*registry.losses} - {'answers'}))}"}
    )
    num_negatives: int | None = field(default=None, metadata={"help": "shared negatives of sampled_softmax and gbce"})
    dropout: float | None = field(default=None, metadata={"help": "of the item vectors and the trunk"})
    attention_dropout: float | None = field(default=None, metadata={"help": "inside attention, if not --dropout"})
    block_dropout: float | None = field(default=None, metadata={"help": "of what each block adds to its input"})


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(default="synthetic", metadata={"help": f"what is read: {', '.join(sorted(registry.readers))}"})
    data_dir: str | None = field(default=None, metadata={"help": "folder with the dataset's original files"})
    data_options: list[str] = field(
        default_factory=list, metadata={"help": "what the format leaves open, as user=uid item=vid timestamp_unit=ms"}
    )
    prepared_dir: str | None = field(
        default=None, metadata={"help": "where histories that are made of it are kept; by default the cache folder"}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "positions per history; longer ones are cut into windows"}
    )
    max_malformed: float = field(default=0.001, metadata={"help": "share of malformed rows above which reading stops"})
    min_user_events: int = field(default=3, metadata={"help": "users with fewer events are left out"})
    min_item_events: int = field(default=1, metadata={"help": "items with fewer events are left out"})
    max_user_events: int = field(default=1_000_000, metadata={"help": "users with more events are left out"})
    min_rating: float | None = field(default=None, metadata={"help": "lower ratings are no interactions"})
    split: str = field(
        default="leave_one_out", metadata={"help": f"what is held out: {', '.join(sorted(registry.splits))}"}
    )
    split_share: float | None = field(
        default=None, metadata={"help": "held out for validation, and as much for test, where the split has a share"}
    )
    ranking: str = field(default="full", metadata={"help": "full, or sampled-N: among N items drawn for each user"})
    filter_seen: bool = field(default=True, metadata={"help": "do not rank what a user has had before"})


Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


def check(arguments: Arguments, output_dir: Path) -> None:
    """Refuse what can be refused before anything is read."""
    model_args, data_args, train_args = arguments
    least = {"max_length": (data_args.max_length, 1), "num_negatives": (model_args.num_negatives, 1)}
    check_arguments(train_args, output_dir, least)


def train(arguments: Arguments, output_dir: Path) -> None:
    """Read the log, train on it, rank the catalogue for every user."""
    model_args, data_args, train_args = arguments
    card = find_card(model_args.model, ZOO)
    setup = set_up(train_args, card, output_dir, default=CONFIG, root=ROOT)
    protocol = Protocol.parse(data_args.ranking, filter_seen=data_args.filter_seen)
    split_by = registry.splits.load(data_args.split, where="--split")
    max_length = first_given(data_args.max_length, card and card.data.max_length, 100)

    prepared = prepare_log(data_args)
    identity = {"log": prepared.manifest.fingerprint, "split": f"{data_args.split} {data_args.split_share}"}
    check_same_data(output_dir, {**identity, "max_length": str(max_length)}, resume=train_args.resume)
    split: Split = split_by(prepared.histories(), share=data_args.split_share)

    # Before the training: a split may leave nobody to predict for.
    parts: tuple[Part, ...] = ("valid", "test") if train_args.eval_epochs else ("test",)
    rows = {part: split.evaluation(part, max_length, protocol) for part in parts}

    def rank_part(engine: Any, part: Part) -> torch.Tensor:
        def progress(batches: Any) -> Any:
            return tqdm(batches, desc=f"rank {part}", unit="batch", leave=False, disable=RANK != 0)

        return rank_targets(engine, rows[part], max_length=max_length, protocol=protocol, progress=progress)

    def began(engine: Any) -> None:
        if RANK == 0:
            describe(prepared.manifest, engine)
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / ITEMS).write_text(json.dumps(list(split.histories.item_names[1:])))

    def validate(engine: Any) -> dict[str, float]:
        return summarize(rank_part(engine, "valid"), ks=(10,))

    def test(engine: Any) -> dict[str, Any]:
        ranks = rank_part(engine, "test")
        if RANK == 0:
            (output_dir / RANKS).write_text(json.dumps(ranks.tolist()))
        popularity = evaluate_popularity(split, "test", max_length=max_length, protocol=protocol)
        return {
            **_hr_and_ndcg(summarize(ranks, ks=(10,))),
            "popularity": _hr_and_ndcg(popularity),
            "protocol": f"{split.name}, {protocol}; histories of at most {max_length}",
        }

    task = Task(
        model=build_model(model_args, card, split),
        windows=split.train_windows(max_length),
        max_length=max_length,
        began=began,
        validate=validate,
        test=test,
        watched="NDCG@10",
    )
    result = run(task, setup, train_args, output_dir, arguments)
    if RANK == 0:
        conclude(result, output_dir)


def build_model(model_args: ModelArguments, card: Card | None, split: Split) -> recparallel.Recommender:
    """The recommender that the arguments name; options of the head come from the card where they were left out."""
    head = card.head if card else Head()
    loss = model_args.loss or head.loss
    if loss == "answers":
        raise ConfigError("loss 'answers' is for prompts: use recipes/train_click.py")
    options: dict[str, Any] = dict(head.loss_options) if loss == head.loss else {}
    takes = inspect.signature(registry.losses.load(loss, where="--loss")).parameters
    if "item_counts" in takes:
        options["item_counts"] = popularity_scores(split)
    if "num_negatives" in takes:
        options |= {} if model_args.num_negatives is None else {"num_negatives": model_args.num_negatives}
    elif model_args.num_negatives is not None:
        raise ConfigError(
            f"--num_negatives {model_args.num_negatives} goes with losses that draw some, the loss is {loss}"
        )
    dropouts = {
        name: getattr(head if getattr(model_args, name) is None else model_args, name)
        for name in ("dropout", "attention_dropout", "block_dropout")
    }
    return recparallel.build_recommender(
        card.architecture if card else model_args.model,
        num_items=split.histories.num_items,
        tied=head.tied if model_args.tied is None else model_args.tied,
        loss=loss,
        loss_options=options,
        **dropouts,
    )


def prepare_log(data_args: DataArguments) -> Prepared:
    """Histories of the log; made by the first rank that comes, and found by the others and by later runs."""
    filters = Filters(
        data_args.min_user_events, data_args.min_item_events, data_args.max_user_events, data_args.min_rating
    )
    return prepare(
        data_args.dataset,
        data_args.data_dir,
        folder=Path(data_args.prepared_dir) if data_args.prepared_dir else None,
        filters=filters,
        max_malformed=data_args.max_malformed,
        options=parse_options(data_args.data_options, where="--data_options"),
        progress=RANK == 0,
    )


def describe(manifest: Manifest, engine: Any) -> None:
    for words, count in manifest.report.lines():
        print(f"{manifest.dataset}: {words}: {count:,}")
    print(
        f"{manifest.num_users:,} users, {manifest.num_items:,} items, {manifest.num_interactions:,} interactions; "
        f"{describe_plan(engine.recparallel.plan)}",
        flush=True,
    )


def _hr_and_ndcg(metrics: dict[str, float]) -> dict[str, float]:
    return {"hr@10": metrics["HR@10"], "ndcg@10": metrics["NDCG@10"]}


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
    start((ModelArguments, DataArguments, TrainingArguments), check=check, train=train)
