"""A topology whose stages stand on devices in an order of their own."""

from collections.abc import Sequence

from deepspeed.runtime.pipe.topology import (
    PipeDataParallelTopology,
    PipeModelDataParallelTopology,
    ProcessTopology,
)


def topology_in_order(*, stages: int, replicas: int, tensor: int = 1, order: Sequence[int] = ()) -> ProcessTopology:
    """Share ``m`` of stage ``s`` of replica ``d`` is on rank ``(order[s] * replicas + d) * tensor + m``; without an order,
    DeepSpeed's own topology. Ranks that share layers are neighbours, which launchers put on one machine."""
    if tensor == 1:
        topology: ProcessTopology = PipeDataParallelTopology(num_pp=stages, num_dp=replicas)
    else:
        topology = PipeModelDataParallelTopology(num_pp=stages, num_mp=tensor, num_dp=replicas)
    if order:
        topology.mapping = {
            at: (order[at.pipe] * replicas + at.data) * tensor + (at.model if tensor > 1 else 0)
            for at in topology.mapping
        }
    return topology
