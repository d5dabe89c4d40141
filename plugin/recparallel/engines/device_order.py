"""A topology whose stages stand on devices in an order of their own."""

from collections.abc import Sequence

from deepspeed.runtime.pipe.topology import PipeDataParallelTopology


def topology_in_order(*, stages: int, replicas: int, order: Sequence[int] = ()) -> PipeDataParallelTopology:
    """Stage ``s`` of replica ``d`` runs on rank ``order[s] * replicas + d``; without an order, DeepSpeed's own topology."""
    topology = PipeDataParallelTopology(num_pp=stages, num_dp=replicas)
    if order:
        topology.mapping = {
            coordinates: order[coordinates.pipe] * replicas + coordinates.data for coordinates in topology.mapping
        }
    return topology
