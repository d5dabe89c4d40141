"""Put a trunk, an item table and a head together: one list of pipeline layers and a loss."""

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from recparallel import registry
from recparallel.errors import ConfigError, UnknownNameError
from recparallel.models.layer import Layer
from recparallel.models.layers import (
    DecoderBlock,
    FinalNorm,
    ItemEmbedding,
    NextItemHead,
    TokenEmbedding,
    TokenHead,
    score_with_table,
)
from recparallel.models.losses import TargetLoss
from recparallel.models.pretrained import weights_folder, with_pretrained_weights
from recparallel.models.trunk import Trunk

TABLE = "item_table"
"""Tie key of the shared item table."""

_DROPOUTS = ("dropout", "embd_pdrop", "hidden_dropout", "resid_pdrop")
_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop")
"""What configs call their dropouts."""


@dataclass(frozen=True)
class Recommender:
    """A recommender as an engine wants it: layers in order, and what turns the last one's output into a loss."""

    layers: tuple[Layer, ...]
    loss_fn: TargetLoss
    config: PretrainedConfig
    num_items: int
    tied: bool
    max_length: int | None = None
    """The most positions that the trunk can take, or None without a limit."""


def build_recommender(
    model: str | Path | PretrainedConfig | dict[str, Any],
    *,
    num_items: int | None,
    tied: bool = True,
    loss: str = "cross_entropy",
    loss_options: dict[str, Any] | None = None,
    dropout: float = 0.0,
    attention_dropout: float | None = None,
    block_dropout: float = 0.0,
    pretrained: bool = True,
) -> Recommender:
    """Turn a Hugging Face decoder-only LM into pipeline layers with a recommendation head.

    Args:
        model: a config object; a dict with ``model_type``; a folder with ``config.json``; or a hub name.
        num_items: size of the catalogue. ``None`` keeps the language model's own tokens and output matrix instead.
        tied: the head scores against the embedding table. With ``num_items=None`` the model's own setting decides.
        loss: name of a registered loss.
        loss_options: keyword arguments of that loss.
        dropout: of the item vectors, and of every dropout that the family's config has. With ``num_items=None`` the
            config's own values stay.
        attention_dropout: of the attention's probabilities, where it is another one.
        block_dropout: of what each block adds to its input, beside what the family has of its own.
        pretrained: load the trunk's weights where ``model`` names a folder or repository that has them.

    Raises:
        UnknownNameError: no such model, family or loss.
        ConfigError: a number is out of range, or the language model's own head bends its scores.
    """
    if num_items is not None and num_items < 1:
        raise ConfigError(f"num_items must be at least 1, got {num_items}")
    attention_dropout = dropout if attention_dropout is None else attention_dropout
    shares = {"dropout": dropout, "attention_dropout": attention_dropout, "block_dropout": block_dropout}
    for name, share in shares.items():
        if not 0.0 <= share < 1.0:
            raise ConfigError(f"{name} must lie in [0, 1), got {share}")
    config = _load_config(model)
    if num_items is not None:
        for keys, share in ((_DROPOUTS, dropout), (_ATTENTION_DROPOUTS, attention_dropout)):
            for key in keys:
                if hasattr(config, key):
                    setattr(config, key, share)
        config.tie_word_embeddings = tied
    _leave_scores_alone(config, tokens=num_items is None)
    trunk = Trunk.of(config)
    table_rows = config.vocab_size - 1 if num_items is None else num_items
    loss_fn = registry.losses.load(loss, where="loss")(num_items=table_rows, **(loss_options or {}))
    layers = [*_trunk_layers(trunk, block_dropout)]
    embedding, head = _ends(trunk, num_items=num_items, dropout=dropout)
    layers = [embedding, *layers, head]
    folder = weights_folder(model) if pretrained else None
    if folder is not None:
        layers = with_pretrained_weights(layers, trunk, folder, tokens=num_items is None)
    return Recommender(tuple(layers), loss_fn, config, table_rows, bool(config.tie_word_embeddings), trunk.max_length)


def _leave_scores_alone(config: PretrainedConfig, *, tokens: bool) -> None:
    """Scores are products of hidden states and rows of a table; heads of some families bend them (Gemma 2)."""
    bent = getattr(config, "final_logit_softcapping", None)
    if bent is not None and tokens:
        raise ConfigError(
            f"the language model's own head with final_logit_softcapping={bent} is not supported; set it to null in the config, "
            "or give num_items for a head over items"
        )
    if bent is not None:
        config.final_logit_softcapping = None


def _trunk_layers(trunk: Trunk, dropout: float) -> list[Layer]:
    options = {"config": trunk.config, **({"dropout": dropout} if dropout else {})}
    blocks = [
        Layer(f"blocks.{i}", DecoderBlock, {**options, "index": i}, alike=trunk.attention_type(i))
        for i in range(trunk.num_blocks)
    ]
    norm = Layer("norm", FinalNorm, {"config": trunk.config, "path": trunk.norm}, kind="norm")
    return [*trunk.before_blocks(), *blocks, norm]


def _ends(trunk: Trunk, *, num_items: int | None, dropout: float) -> tuple[Layer, Layer]:
    """The table that makes vectors of ids, and the head that scores against a table: the same one, or one of its
    own."""
    config = trunk.config
    tie = TABLE if config.tie_word_embeddings else None
    if num_items is None:
        tokens = {"config": config, "path": trunk.embedding, "dropout": trunk.embedding_dropout}
        embedding = Layer("embedding", TokenEmbedding, tokens, tie=tie, kind="embedding")
        head = Layer("head", TokenHead, {"config": config, "path": trunk.head}, kind="head")
    else:
        table = {"num_items": num_items, "dim": trunk.dim, "std": trunk.std}
        items = {**table, "dropout": dropout, "scale": trunk.embedding_scale}
        embedding = Layer("embedding", ItemEmbedding, items, tie=tie, kind="embedding")
        head = Layer("head", NextItemHead, table, kind="head")
    if tie is not None:
        head = dataclasses.replace(embedding, name="head", kind="head", forward=score_with_table)
    return embedding, head


def _load_config(model: str | Path | PretrainedConfig | dict[str, Any]) -> PretrainedConfig:
    if isinstance(model, PretrainedConfig):
        return copy.deepcopy(model)
    if isinstance(model, dict):
        options = dict(model)
        model_type = options.pop("model_type", "")
        registry.families.load(model_type, where="model_type of the model's config")
        return AutoConfig.for_model(model_type, **options)
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ConfigError(f"{model} is a folder without config.json; expected a Hugging Face model folder")
    if str(model).endswith(".json"):
        return _load_config(json.loads(Path(model).read_text()))
    try:
        return AutoConfig.from_pretrained(model)
    except OSError as error:
        raise UnknownNameError(
            "model",
            str(model),
            registry.families,
            where="neither a folder with config.json nor a reachable hub name; known families",
        ) from error
