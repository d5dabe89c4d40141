"""Teach a language model to say whether a user will like an item, from prompts, cut over a pipeline and replicas.

    deepspeed --num_accelerators 2 recipes/train_click.py --data_dir PATH --num_train_prompts 256 --output_dir runs/click

The folder holds ``train.json``, ``valid.json`` and ``test.json`` as TALLRec publishes them. The model is trained whole, on the
answer alone; what counts is the AUC of the difference of the logits of yes and no. Each option has a help text:
``python recipes/train_click.py --help``.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import recparallel
from recparallel.data.prompts.reading import Prompt, read_prompts, some_of
from recparallel.data.prompts.tokens import Encoder, load_tokenizer, train_tokenizer
from recparallel.engines.scoring import score_answers
from recparallel.errors import ConfigError, DataError
from recparallel.evaluation.auc import auc
from recparallel.models.zoo import Card, find_card
from recparallel.training.arguments import RANK, TrainingArguments, check_arguments, first_given
from recparallel.training.identity import check_same_data
from recparallel.training.run import Task, describe_plan, run, set_up
from recparallel.training.start import start

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "model_zoo"
CONFIG = ROOT / "recipes" / "configs" / "single.json"
TOKENIZER = "tokenizer"


@dataclass
class ModelArguments:
    """What is trained."""

    model: str = field(
        default="click-tiny", metadata={"help": "a card of model_zoo/, a Hugging Face folder, or a hub name owner/name"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "a folder or hub name; by default the model's own, for a card one trained on the prompts"},
    )
    vocab_size: int = field(default=8192, metadata={"help": "tokens at most, of a tokenizer that is trained here"})


@dataclass
class DataArguments:
    """What it is trained on."""

    data_dir: str = field(metadata={"help": "folder with train.json, valid.json and test.json"})
    num_train_prompts: int | None = field(default=None, metadata={"help": "drawn from train.json; by default all"})
    sample_seed: int = field(default=0, metadata={"help": "of that draw"})
    max_length: int | None = field(
        default=None, metadata={"help": "tokens of a prompt; of longer ones the last are read"}
    )
    max_malformed: float = field(
        default=0.001, metadata={"help": "share of malformed prompts above which reading stops"}
    )


Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


def check(arguments: Arguments, output_dir: Path) -> None:
    """Refuse what can be refused before anything is read."""
    model_args, data_args, train_args = arguments
    least = {
        "max_length": (data_args.max_length, 1),
        "num_train_prompts": (data_args.num_train_prompts, 1),
        "vocab_size": (model_args.vocab_size, 300),
    }
    check_arguments(train_args, output_dir, least)


def train(arguments: Arguments, output_dir: Path) -> None:
    """Read prompts, train on some of them, compare the answers to others."""
    model_args, data_args, train_args = arguments
    card = find_card(model_args.model, ZOO)
    setup = set_up(train_args, card, output_dir, default=CONFIG, root=ROOT)
    max_length = first_given(data_args.max_length, card and card.data.max_length, 512)
    parts = {
        part: read_prompts(Path(data_args.data_dir) / f"{part}.json", max_malformed=data_args.max_malformed)
        for part in ("train", "valid", "test")
    }
    if data_args.num_train_prompts is not None:
        parts["train"] = some_of(parts["train"], data_args.num_train_prompts, seed=data_args.sample_seed)
    for part in ("valid", "test"):  # before the training: they must tell something
        if len({prompt.liked for prompt in parts[part]}) < 2:
            raise DataError(f"{data_args.data_dir}/{part}.json: all answers are the same; AUC compares two kinds")
    encoder = Encoder(tokenizer_of(model_args, card, parts["train"]), max_length)
    identity = {"prompts": fingerprint_of(parts["train"]), "vocabulary": fingerprint_of(encoder.tokenizer.get_vocab())}
    check_same_data(output_dir, {**identity, "max_length": str(max_length)}, resume=train_args.resume)

    def auc_of(engine: Any, part: str) -> float:
        def progress(batches: Any) -> Any:
            return tqdm(batches, desc=f"answer {part}", unit="batch", leave=False, disable=RANK != 0)

        scores = score_answers(engine, encoder.rows(parts[part]), max_length=max_length, progress=progress)
        return auc(scores, torch.tensor([prompt.liked for prompt in parts[part]]))

    def began(engine: Any) -> None:
        if RANK == 0:
            counts = ", ".join(f"{len(prompts):,} {part}" for part, prompts in parts.items())
            print(
                f"prompts: {counts}; {len(encoder.tokenizer):,} tokens; {describe_plan(engine.recparallel.plan)}",
                flush=True,
            )
            encoder.tokenizer.save_pretrained(output_dir / TOKENIZER)

    task = Task(
        model=build_model(model_args, card, encoder),
        windows=encoder.windows(parts["train"]),
        max_length=max_length,
        began=began,
        validate=lambda engine: {"AUC": auc_of(engine, "valid")},
        test=lambda engine: {
            "auc": auc_of(engine, "test"),
            "protocol": f"AUC of the logit of yes less that of no over {len(parts['test']):,} prompts; "
            f"trained on {len(parts['train']):,}",
        },
        watched="AUC",
    )
    result = run(task, setup, train_args, output_dir, arguments)
    if RANK == 0:
        speed = result["sequences_per_s"]
        print(f"test AUC {result['auc']:.4f}")
        print(f"protocol: {result['protocol']}")
        print(f"{result['steps']} steps" + (f", {speed:.0f} prompts/s" if speed else ""))
        print(f"written to {output_dir}/: metrics.json, losses.jsonl, {TOKENIZER}/, checkpoints/, wandb/", flush=True)


def tokenizer_of(model_args: ModelArguments, card: Card | None, prompts: list[Prompt]) -> Any:
    """The one that the arguments name, the model's own, or a new one."""
    if model_args.tokenizer is not None:
        return load_tokenizer(model_args.tokenizer)
    if card is None:
        return load_tokenizer(model_args.model)
    return train_tokenizer(prompts, vocab_size=model_args.vocab_size)


def fingerprint_of(content: Any) -> str:
    """Of prompts, or of a vocabulary."""
    ordered = sorted(content.items()) if isinstance(content, dict) else content
    return hashlib.sha256(repr(ordered).encode()).hexdigest()[:16]


def build_model(model_args: ModelArguments, card: Card | None, encoder: Encoder) -> recparallel.Recommender:
    """The language model with its own tokens; a card's gets as many as the tokenizer has."""
    yes, no = encoder.answers
    architecture = {**card.architecture, "vocab_size": len(encoder.tokenizer)} if card else model_args.model
    model = recparallel.build_recommender(
        architecture, num_items=None, loss="answers", loss_options={"yes": yes, "no": no}
    )
    if len(encoder.tokenizer) > model.num_items + 1:
        raise ConfigError(
            f"the tokenizer has {len(encoder.tokenizer)} tokens, but {model_args.model} has a table of {model.num_items + 1}"
        )
    return model


if __name__ == "__main__":
    start((ModelArguments, DataArguments, TrainingArguments), check=check, train=train)
