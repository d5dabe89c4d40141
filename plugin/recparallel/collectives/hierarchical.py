"""Sum inside a node first, where links are fast, and through the codec between nodes."""

import os
import socket
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from recparallel.collectives.base import Aggregation, Summed, zeros_for_sum
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

    def sum(self, codec: Codec, flat_N: Tensor, *, seed: int, keep_rest: bool) -> Summed:
        size, per_node = len(flat_N), self._per_node
        share = -(-size // per_node)
        given_N = functional.pad(flat_N.to(zeros_for_sum(0, flat_N).dtype), (0, per_node * share - size))
        node_S = given_N.new_empty(share)
        dist.reduce_scatter_tensor(node_S, given_N, group=self._inside)
        summed = self._between.sum(codec, node_S, seed=seed + self._place, keep_rest=keep_rest)
        total_N = torch.empty_like(given_N)
        dist.all_gather_into_tensor(total_N, summed.total_N.contiguous(), group=self._inside)
        rest_N = None
        if summed.rest_N is not None:
            rest_N = torch.zeros_like(given_N)
            rest_N[self._place * share : (self._place + 1) * share] = summed.rest_N
            rest_N = rest_N[:size]
        sent = (len(given_N) + share) * given_N.element_size() + summed.sent_bytes
        return Summed(total_N[:size], rest_N, sent)


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
