"""Sum inside a node first, where links are fast, and through the codec between nodes."""

import os
import socket
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from recparallel.collectives.base import Aggregation
from recparallel.compression.base import Codec
from recparallel.errors import ConfigError


class Hierarchical(Aggregation):
    """Two levels.

    1. The ranks of a node reduce-scatter the gradient densely, in fp32: each holds the node's sum of one share.
    2. Ranks that hold the same share of different nodes exchange it through the codec, by ``between``.
    3. The ranks of a node gather the shares.

    So ``1 / ranks a node`` of a payload leaves each rank, and each link between nodes carries one payload for all ranks of a node.

    Args:
        group: the replicas.
        inside: the replicas of this rank's node, in order.
        between: how step 2 sums, over one rank of each node.
    """

    name = "hierarchical"

    def __init__(self, group: dist.ProcessGroup, inside: dist.ProcessGroup, between: Aggregation) -> None:
        super().__init__(group)
        self._inside, self._between = inside, between
        self._per_node, self._place = dist.get_world_size(inside), dist.get_rank(inside)

    def sum(self, codec: Codec, given_N: Tensor, total_N: Tensor, *, seed: int, keep_rest: bool) -> int:
        size, per_node = len(given_N), self._per_node
        share = -(-size // per_node)
        padded_N = functional.pad(given_N.to(total_N.dtype), (0, per_node * share - size))
        node_S = padded_N.new_empty(share)
        dist.reduce_scatter_tensor(node_S, padded_N, group=self._inside)
        between_S = torch.empty_like(node_S)
        sent = self._between.sum(codec, node_S, between_S, seed=seed + self._place, keep_rest=keep_rest)
        if keep_rest:
            own_S = given_N.zero_()[self._place * share : (self._place + 1) * share]
            own_S.copy_(node_S[: len(own_S)])
        dist.all_gather_into_tensor(padded_N, between_S, group=self._inside)
        total_N.copy_(padded_N[:size])
        return sent + (len(padded_N) + share) * padded_N.element_size()


class NodeGroups(NamedTuple):
    """Of one rank: the replicas of its node, and those of all nodes that hold the same share as it does."""

    inside: dist.ProcessGroup
    across: dist.ProcessGroup


def node_groups(group: dist.ProcessGroup, *, node: str) -> NodeGroups:
    """Collective over all processes of the job: each makes every group.

    Args:
        group: the replicas.
        node: of this rank.

    Raises:
        ConfigError: replicas are not on two nodes or more, as many on each, and more than one; on every rank.
    """
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (tuple(dist.get_process_group_ranks(group)), node))
    node_of, mine = [node for _, node in everyone], None
    for ranks in sorted({ranks for ranks, _ in everyone}):
        nodes = [[rank for rank in ranks if node_of[rank] == node] for node in dict.fromkeys(node_of[r] for r in ranks)]
        if len(nodes) < 2 or len(nodes[0]) < 2 or len({len(node) for node in nodes}) > 1:
            raise ConfigError(
                f"recparallel.compression.aggregation 'hierarchical' needs two nodes or more with as many replicas on each, "
                f"at least two; ranks {list(ranks)} are spread as {nodes}"
            )
        inside = [dist.new_group(node) for node in nodes]
        across = [dist.new_group(list(column)) for column in zip(*nodes)]
        if dist.get_rank() in ranks:
            number = next(number for number, members in enumerate(nodes) if dist.get_rank() in members)
            mine = NodeGroups(inside[number], across[nodes[number].index(dist.get_rank())])
    assert mine is not None
    return mine


def this_node() -> str:
    """What the ranks of one machine have in common: its name, and the first rank that the launcher started there."""
    first = dist.get_rank() - int(os.environ.get("LOCAL_RANK", "0"))
    return f"{socket.gethostname()} from rank {first}"
