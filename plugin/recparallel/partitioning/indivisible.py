"""The layer that no cut can divide: which one bounds a pipeline, by how much, and what would lift it."""

from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np

from recparallel.partitioning.costs import Costs, device_groups
from recparallel.partitioning.device_order import (
    MOST_ORDERS,
    device_classes,
    different_orders,
    minimize_bottleneck_any_order,
    minimize_step_any_order,
)
from recparallel.partitioning.memory import too_little_memory
from recparallel.partitioning.step_costs import micro_batches_of
from recparallel.partitioning.step_time import least_step
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
            return f"sharing its table among stages (spread_head) or tensor ranks (tensor) would allow {gain}"
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
    """The costliest layer that ``partition`` leaves whole, and whether it bounds it."""
    groups = device_groups(profile, partition.num_stages)
    fastest = max(group.speed for group in groups)
    whole = set(range(len(profile.layers))) - {spread.layer for spread in partition.spread}
    index = max(sorted(whole), key=lambda i: profile.layers[i].seconds)
    layer = profile.layers[index]
    seconds = layer.seconds / fastest
    even = sum(layer.seconds for layer in profile.layers) / sum(group.speed for group in groups)
    slowest = max(partition.stage_seconds, default=0.0)
    return Indivisible(layer, seconds, even, bounds_it=seconds > even and seconds >= _MOST_OF_IT * slowest)


def fastest_step(profile: Profile, stages: int) -> float:
    """Seconds of the fastest simulated step of any cut and any order of devices, where the search for it comes to an end; else
    :func:`shortest_step`, which no cut reaches. No step over contiguous cuts is faster than either.

    Raises:
        PartitionError: as :func:`shortest_step`.
    """
    found = minimize_step_any_order(profile, stages)
    if found.optimal and found.step_seconds is not None:
        return found.step_seconds
    return shortest_step(profile, stages)


def shortest_step(profile: Profile, stages: int) -> float:
    """Seconds that no step over contiguous cuts can beat, whatever the cut and the order of devices.

    1. For every order of devices, the best that any cut allows: all micro-batches of a stage and its wait for the first
       gradient, behind one forward and before one backward of the stages in front of it, then the first stage's update
       (:func:`~recparallel.partitioning.step_time.least_step`). With more orders than can be searched, all micro-batches of the
       slowest stage of the best cut, then the first layer's update.
    2. The exchange of a table that no cut leaves on one stage, over the fastest link.
    3. For every layer: all its micro-batches on the fastest device, behind one forward of all layers in front of it and
       before its own update.

    Raises:
        PartitionError: the profile does not say how many micro-batches a step has, or no cut is possible.
    """
    micro_batches = micro_batches_of(profile)
    costs = Costs(profile, stages)
    fastest = max(group.speed for group in costs.groups)
    layers = profile.layers
    alone = [
        (float(costs.forward[i]) + micro_batches * layer.seconds + layer.update_seconds) / fastest
        for i, layer in enumerate(layers)
    ]
    exchange = _least_exchange(costs) if _is_torn(profile, stages) else 0.0
    return max(*alone, _least_of_all_orders(costs, micro_batches) + exchange)


def _least_of_all_orders(costs: Costs, micro_batches: int) -> float:
    orders = list(islice(different_orders(device_classes(costs)), MOST_ORDERS + 1))
    if len(orders) > MOST_ORDERS:
        slowest = max(minimize_bottleneck_any_order(costs.profile, costs.stages).stage_seconds)
        return micro_batches * slowest + costs.profile.layers[0].update_seconds / max(g.speed for g in costs.groups)
    least = min(least_step(costs, [costs.groups[d] for d in order]) for order in orders)
    if least == np.inf:
        raise too_little_memory(costs, costs.groups)
    return least


def _is_torn(profile: Profile, stages: int) -> bool:
    """Whether the first layer is tied to one that no cut into so many stages leaves on its stage."""
    layers = profile.layers
    tie = layers[0].tie
    return tie is not None and any(layer.tie == tie and len(layers) - i < stages for i, layer in enumerate(layers) if i)


def _least_exchange(costs: Costs) -> float:
    """The least seconds in which copies of the first layer's table sum their gradients: as many rows as its busiest place
    touches, or all of them, cross a link."""
    link = _best_link(costs)
    if link is None:
        return 0.0
    places = [layer for layer in costs.profile.layers if layer.tie == costs.profile.layers[0].tie]
    touched = max(layer.touched_bytes(costs.num_micro_batches) for layer in places)
    return min(touched, *(layer.summed_bytes for layer in places)) / link.bytes_per_second


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
