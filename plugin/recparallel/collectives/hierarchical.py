"""Sum inside a node first, where links are fast, and through the codec between nodes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from recparallel.collectives.base import Aggregation, Summed, zeros_for_sum
from recparallel.compression.base import Codec


class Hierarchical(Aggregation):
    """Two levels.

    1. The ranks of a node reduce-scatter the gradient densely, in fp32: each holds the node's sum of one share.
    2. Ranks that hold the same share of different nodes exchange it through the codec, by ``between``.
    3. The ranks of a node gather the shares.

    So ``1 / ranks a node`` of a payload leaves each rank, and each link between nodes carries one payload for all ranks of a node.

    Args:
        group: the replicas.
        inside: of this rank's node, in order.
        across: one of each node, that hold the same share.
        between: how step 2 sums.
    """

    name = "hierarchical"

    def __init__(
        self, group: dist.ProcessGroup, inside: dist.ProcessGroup, across: dist.ProcessGroup, between: type[Aggregation]
    ) -> None:
        super().__init__(group)
        self._inside, self._between = inside, between(across)
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


def node_groups(group: dist.ProcessGroup, node_of: Sequence[str]) -> tuple[dist.ProcessGroup, dist.ProcessGroup] | None:
    """The groups inside this rank's node and across nodes; None where nodes do not hold equally many ranks, or one each, or all are
    of one node. Collective over all processes of the job: each makes every group.

    Args:
        group: the replicas.
        node_of: of each rank of the whole job, in order, the node.
    """
    everyone: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, dist.get_process_group_ranks(group))
    mine = None
    for ranks in sorted({tuple(ranks) for ranks in everyone}):
        nodes = [[rank for rank in ranks if node_of[rank] == node] for node in dict.fromkeys(node_of[r] for r in ranks)]
        if len(nodes) < 2 or len(nodes[0]) < 2 or len({len(node) for node in nodes}) > 1:
            continue
        inside = [dist.new_group(node) for node in nodes]
        across = [dist.new_group(list(column)) for column in zip(*nodes)]
        if dist.get_rank() in ranks:
            node = next(number for number, members in enumerate(nodes) if dist.get_rank() in members)
            mine = inside[node], across[nodes[node].index(dist.get_rank())]
    return mine
