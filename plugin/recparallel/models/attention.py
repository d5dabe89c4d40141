"""The same recommender with another way to compute attention."""

import copy
import dataclasses

from recparallel.errors import ConfigError
from recparallel.models.layer import Layer
from recparallel.models.recommender import Recommender
from recparallel.models.trunk import Trunk


def with_attention(recommender: Recommender, name: str) -> Recommender:
    """Let the trunk's blocks compute attention as transformers calls it ``name``.

    Raises:
        ConfigError: it would give other results; the message lists those that give the same.
    """
    same = Trunk.of(recommender.config).attentions
    if name not in same:
        raise ConfigError(
            f"recparallel.attention is {name!r}, which is not the attention of this model: "
            f"{type(recommender.config).__name__} is computed by {', '.join(same)}"
        )
    if name == same[0]:
        return recommender
    config = copy.deepcopy(recommender.config)
    config._attn_implementation = name
    layers = tuple(
        dataclasses.replace(layer, kwargs={**layer.kwargs, "config": config}) if "config" in layer.kwargs else layer
        for layer in recommender.layers
    )
    return dataclasses.replace(recommender, layers=layers, config=config)


def layers_by_attention(recommender: Recommender) -> dict[str, tuple[Layer, ...]]:
    """The layers under each way that gives the same; the model's own comes first."""
    return {name: with_attention(recommender, name).layers for name in Trunk.of(recommender.config).attentions}
