"""The layer that no cut can divide: which one bounds a pipeline, by how much, and what would lift it."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from recparallel.partitioning.costs import CROSSINGS, Costs, Floats, device_groups
from recparallel.partitioning.device_order import minimize_bottleneck_any_order
from recparallel.partitioning.step_costs import micro_batches_of
from recparallel.plan import LayerCost, LinkCost, Partition, Profile

_MOST_OF_IT = 0.9


@dataclass(frozen=True)
class Indivisible:
    """The costliest layer of a profile.

    Attributes:
        layer: which.
        seconds: of one micro-batch on the fastest device: no cut makes the slowest stage faster.
        even: seconds of the slowest stage if layers could be divided at will.
        bounds_it: whether it is nine tenths or more of the partition's slowest stage, and more than its even share: then
            moving other layers, or devices, would hardly help.
    """

    layer: LayerCost
    seconds: float
    even: float
    bounds_it: bool

    @property
    def remedy(self) -> str:
        """What would lift the bound, in words."""
        gain = f"up to {self.seconds / self.even:.2f}x" if self.even else "without limit"
        if self.layer.kind in ("head", "embedding"):
            return f"sharing its table among stages or tensor ranks would allow {gain}"
        return f"tensor parallelism within it would allow {gain}"

    def sentence(self) -> str:
        """For a person."""
        if not self.bounds_it:
            return (
                f"no single layer bounds the pipeline: the costliest, {self.layer.name}, takes "
                f"{self.seconds * 1e3:.2f} ms of each micro-batch"
            )
        return (
            f"{self.layer.name} cannot be cut and bounds the pipeline: {self.seconds * 1e3:.2f} ms of each micro-batch on the "
            f"fastest device, {self.even * 1e3:.2f} ms if all work could be shared evenly; {self.remedy}"
        )


def indivisible(profile: Profile, partition: Partition) -> Indivisible:
    """The costliest layer, and whether it bounds ``partition``."""
    groups = device_groups(profile, partition.num_stages)
    fastest = max(group.speed for group in groups)
    index = max(range(len(profile.layers)), key=lambda i: profile.layers[i].seconds)
    layer = profile.layers[index]
    seconds = layer.seconds / fastest
    even = sum(layer.seconds for layer in profile.layers) / sum(group.speed for group in groups)
    slowest = max(partition.stage_seconds, default=0.0)
    return Indivisible(layer, seconds, even, bounds_it=seconds > even and seconds >= _MOST_OF_IT * slowest)


def shortest_step(profile: Profile, stages: int) -> float:
    """Seconds that no 1F1B step over contiguous cuts can beat, whatever the cut and the order of devices.

    1. For every layer: all its micro-batches on the fastest device with the transfers that its stage cannot avoid, behind one
       forward of all layers in front of it, and before their backward or its own update, whichever is longer.
    2. All micro-batches of the slowest stage of the best cut.
    3. Where the first layer is tied to one that no cut can join to it: the first of these, then the exchange of their
       gradients over the fastest link, then the update.

    Raises:
        PartitionError: the profile does not say how many micro-batches a step has, or no cut is possible.
    """
    micro_batches = micro_batches_of(profile)
    costs = Costs(profile, stages)
    fastest = max(group.speed for group in costs.groups)
    layers = profile.layers
    own = [
        micro_batches * layer.seconds / fastest + _least_transfers(costs, i, micro_batches, fastest)
        for i, layer in enumerate(layers)
    ]
    with_drain = [float(costs.seconds[i]) / fastest + seconds for i, seconds in enumerate(own)]
    with_update = [
        (float(costs.forward[i]) + layers[i].update_seconds) / fastest + seconds for i, seconds in enumerate(own)
    ]
    behind = 0.0
    if _is_torn(profile, stages):
        behind = _least_exchange(costs) + layers[0].update_seconds / fastest
    slowest = micro_batches * max(minimize_bottleneck_any_order(profile, stages).stage_seconds)
    return max(*with_update, max(*with_drain, slowest) + behind)


def _least_transfers(costs: Costs, layer: int, micro_batches: int, fastest: float) -> float:
    """Seconds of transfers that the stage of ``layer`` waits for at least, or of the work of all layers on one side of it if
    it has no boundary there."""
    link = _best_link(costs)
    if link is None:
        return 0.0
    rate, latency = link.bytes_per_second, link.latency_seconds

    def crossing(boundaries: Floats) -> float:
        return CROSSINGS * micro_batches * (latency + float(boundaries.min()) / rate) if len(boundaries) else np.inf

    n = costs.num_layers
    work_left, work_right = float(costs.seconds[layer]), float(costs.seconds[n] - costs.seconds[layer + 1])
    # In the first or in the last stage the layer only is where enough layers remain for the others.
    alone_left = (micro_batches - 1) * work_left / fastest if layer <= n - costs.stages else np.inf
    alone_right = micro_batches * work_right / fastest if layer >= costs.stages - 1 else np.inf
    left = min(alone_left, crossing(costs.boundary[1 : layer + 1]))
    return left + min(alone_right, crossing(costs.boundary[layer + 1 : n]))


def _is_torn(profile: Profile, stages: int) -> bool:
    """Whether the first layer is tied to one that no cut into so many stages leaves on its stage."""
    layers = profile.layers
    tie = layers[0].tie
    return tie is not None and any(layer.tie == tie and len(layers) - i < stages for i, layer in enumerate(layers) if i)


def _least_exchange(costs: Costs) -> float:
    """The least seconds in which copies of the first layer's table sum their gradients."""
    link = _best_link(costs)
    if link is None:
        return 0.0
    layers = costs.profile.layers
    return min(layer.exchanged_bytes for layer in layers if layer.tie == layers[0].tie) / link.bytes_per_second


def _best_link(costs: Costs) -> LinkCost | None:
    """One that no link between two groups beats; None where a pair has no link, as a transfer may cost nothing then."""
    links = [costs.link(a, b) for a, b in combinations(costs.groups, 2)]
    known = [link for link in links if link is not None]
    if len(known) < len(links) or not known:
        return None
    return LinkCost(
        bytes_per_second=max(link.bytes_per_second for link in known),
        latency_seconds=min(link.latency_seconds for link in known),
    )
