"""Model cards: one folder a model with a ``card.yaml`` that says everything needed to build and train it, and what
came of it."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recparallel.errors import ConfigError, UnknownNameError

CARD = "card.yaml"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Head(_Part):
    """The recommendation head and its loss."""

    tied: bool = True
    loss: str = "cross_entropy"
    loss_options: dict[str, Any] = {}
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    attention_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    block_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class Data(_Part):
    """What the card was trained on."""

    dataset: str
    max_length: int = Field(ge=1)


class Interval(_Part):
    """Of several seeds: the mean, and the least and the largest."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.low:.4f}–{self.high:.4f})"


class Result(_Part):
    """One measured training: the command, what it gave, and under which protocol.

    Attributes:
        command: exact, but for ``--seed`` and ``--output_dir`` where several seeds were run.
        dataset, protocol: what was ranked, and how.
        seeds: that were run.
        metrics: by name.
        throughput: by name, as ``histories/s``; empty where not measured.
        machine: on which.
    """

    command: str
    dataset: str
    protocol: str
    seeds: tuple[int, ...] = ()
    metrics: dict[str, float | Interval]
    throughput: dict[str, float | Interval] = {}
    machine: str


class Card(_Part):
    """A model of the zoo.

    ``architecture`` is a Hugging Face config as a dict with ``model_type``; ``plan`` names a DeepSpeed config of
    ``recipes/configs/``.
    """

    description: str
    architecture: dict[str, Any]
    head: Head = Head()
    data: Data
    num_train_epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    plan: str
    results: tuple[Result, ...] = ()


def cards_of(zoo: Path) -> dict[str, Card]:
    """All cards of a zoo, by the names of their folders."""
    return {path.parent.name: load_card(path) for path in sorted(zoo.glob(f"*/{CARD}"))}


def find_card(model: str, zoo: Path) -> Card | None:
    """The card that ``model`` names: a folder with ``card.yaml``, or a folder's name in ``zoo``. None for anything
    else that exists.

    Raises:
        UnknownNameError: ``model`` is neither a card, nor a path, nor of the form of a hub name (``owner/name``).
    """
    for folder in (Path(model), zoo / model):
        if (folder / CARD).is_file():
            return load_card(folder / CARD)
    if Path(model).exists() or "/" in model:
        return None
    known = [path.parent.name for path in zoo.glob(f"*/{CARD}")]
    raise UnknownNameError(
        "model", model, known, where=f"cards in {zoo.name}/; or give a Hugging Face folder or a hub name owner/name"
    )


def load_card(path: Path) -> Card:
    """Read and validate a card.

    Raises:
        ConfigError: the file is not a card; one line per wrong key.
    """
    try:
        return Card.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']} (given {e['input']!r})" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from error
