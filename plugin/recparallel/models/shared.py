"""A recommender as one of several ranks builds it that share every layer, or the head alone."""

import dataclasses

from recparallel.errors import ConfigError
from recparallel.models.layers import DecoderBlock, ItemEmbedding, NextItemHead, TrunkPart
from recparallel.models.losses.cross_entropy import CrossEntropy
from recparallel.models.recommender import Recommender
from recparallel.models.trunk import Trunk
from recparallel.tensor_parallel import TensorRanks

_SHARED = (DecoderBlock, ItemEmbedding, NextItemHead, TrunkPart)
"""Layers that ranks divide, or whose positions they do."""


def shared_among(recommender: Recommender, ranks: TensorRanks) -> Recommender:
    """The same recommender, whose layers and loss are the share of one of ``ranks``.

    Raises:
        ConfigError: its blocks, its catalogue or its loss cannot be divided among so many.
    """
    if ranks.alone:
        return recommender
    Trunk.of(recommender.config).check_tensor_ranks(ranks.size)
    if recommender.num_items + 1 < ranks.size:
        raise ConfigError(
            f"{recommender.num_items} items and the padding cannot be divided among {ranks.size} tensor ranks; use at most "
            f"{recommender.num_items + 1}"
        )
    unknown = [layer.name for layer in recommender.layers if not issubclass(layer.module_class, _SHARED)]
    if ranks.sequence and unknown:
        raise ConfigError(
            f"recparallel.sequence_parallel: layer {unknown[0]!r} does not know of shared positions; make it a TrunkPart, or leave "
            "sequence_parallel out"
        )
    layers = tuple(
        dataclasses.replace(layer, kwargs={**layer.kwargs, "ranks": ranks})
        if issubclass(layer.module_class, _SHARED)
        else layer
        for layer in recommender.layers
    )
    return dataclasses.replace(recommender, layers=layers, loss_fn=recommender.loss_fn.for_ranks(ranks))


def check_spreadable(recommender: Recommender) -> None:
    """Refuse a recommender whose head the stages of a pipeline cannot share.

    Raises:
        ConfigError: why, and what would do.
    """
    if recommender.tied:
        raise ConfigError(
            "recparallel.spread_head with a tied head: its rows are those of the embedding, which the first stage looks up; use a "
            "head of its own (tied=False)"
        )
    if type(recommender.loss_fn) is not CrossEntropy:
        raise ConfigError(
            f"recparallel.spread_head with loss {type(recommender.loss_fn).__name__}: stages share the softmax over the whole "
            "catalogue (cross_entropy); other losses score few rows, or in chunks"
        )
