"""Which aggregation sums a codec's payloads."""

import torch.distributed as dist

from recparallel import registry
from recparallel.collectives.base import Aggregation
from recparallel.collectives.hierarchical import Hierarchical, NodeGroups
from recparallel.compression.base import Codec
from recparallel.errors import ConfigError

BY_CODEC = "auto"
"""In the config: the codec's own, or gathering where that brings no more bytes."""

_KEY = "recparallel.compression.aggregation"


def aggregation_for(
    codec: Codec, name: str, group: dist.ProcessGroup, *, nodes: NodeGroups | None = None
) -> Aggregation:
    """The aggregation that the config names, for the replicas in ``group``.

    Args:
        nodes: for ``hierarchical``.
    """
    if name == Hierarchical.name:
        assert nodes is not None
        return Hierarchical(group, nodes.inside, aggregation_for(codec, BY_CODEC, nodes.across))
    if name == BY_CODEC:
        few = dist.get_world_size(group) <= 2  # each gets one payload: a second hop would only encode once more
        name = "gathered" if few and not codec.exact_sums else codec.aggregation
    made: Aggregation = registry.aggregations.load(name, where=_KEY)(group)
    return made


def check_aggregation(codec: Codec, name: str) -> None:
    """Raises:
    ConfigError: the aggregation does not exist, or cannot sum what this codec sends.
    """
    if name == BY_CODEC:
        return
    why = registry.aggregations.load(name, where=_KEY).refuses(codec)
    if why:
        allowed = [BY_CODEC] + [
            other for other in registry.aggregations if not registry.aggregations.load(other).refuses(codec)
        ]
        raise ConfigError(
            f"{_KEY}: {name!r} cannot sum what codec {codec.name!r} sends: {why}; allowed: {', '.join(allowed)}"
        )
