"""Share the head's rows among all stages of a pipeline so that all of them are done at the same time.

Source: Yeung et al., "Balancing Pipeline Parallelism with Vocabulary Parallelism", MLSys 2025, which shares them evenly.
"""

from collections.abc import Callable, Sequence

from recparallel.errors import PartitionError
from recparallel.partitioning.bottleneck import stage_seconds
from recparallel.partitioning.costs import Costs, Group
from recparallel.partitioning.step_costs import step_costs
from recparallel.plan import Partition, Profile, SpreadLayer

_SCORED_AT_ONCE = 1
"""Micro-batches whose scores a stage keeps: the gradient of one is made before the scores of the next."""

Solver = Callable[[Profile, int], Partition]


def spread_last_layer(profile: Profile, stages: int, solve: Solver) -> Partition:
    """A cut of all layers but the last, which every stage has a share of.

    1. ``solve`` cuts the other layers.
    2. A stage waits for its first activation, and at the end of a step for the stages in front of it: later stages have less time.
       The last one also sends hidden states to all others and receives their gradients, which takes from its computation. The
       head's work goes to the stages that would be done first, until all that have some of it are done at the same time.

    Raises:
        PartitionError: there are not enough layers; or as ``solve``.
    """
    if len(profile.layers) <= stages:
        raise PartitionError(
            f"{stages} stages that share the head need at least {stages} layers in front of it, the model has "
            f"{len(profile.layers) - 1}"
        )
    head = profile.layers[-1]
    room = -(-(head.state_bytes + _SCORED_AT_ONCE * head.activation_bytes) // stages)  # for an equal share of the head
    devices = tuple(
        device
        if device.memory_bytes is None
        else device.model_copy(update={"memory_bytes": max(device.memory_bytes - room, 0)})
        for device in profile.devices
    )
    others = profile.model_copy(update={"layers": profile.layers[:-1], "shapes": (), "devices": devices})
    found = solve(others, stages)
    costs = Costs(others, stages)
    order = [costs.groups[d] for d in found.device_order or range(stages)]
    speeds = [group.speed for group in order]
    messages = _message_seconds(costs, order, others.layers[-1].boundary_bytes)
    taken = [own + extra for own, extra in zip(stage_seconds(costs, order, found.bounds), messages)]
    number = costs.num_micro_batches
    work = _level(
        [own + waits / number for own, waits in zip(taken, _waits(costs, order, found.bounds))], speeds, head.seconds
    )
    total = sum(work)
    shares = tuple(part / total for part in work) if total else ()
    return found.model_copy(
        update={
            "bounds": (*found.bounds[:-1], len(profile.layers)),
            "stage_seconds": tuple(own + part / speed for own, part, speed in zip(taken, work, speeds)),
            "step_seconds": None,
            "optimal": False,
            "spread": (SpreadLayer(layer=len(profile.layers) - 1, stages=tuple(range(stages)), shares=shares),),
        }
    )


def _message_seconds(costs: Costs, order: Sequence[Group], num_bytes: int) -> list[float]:
    """Seconds of computing that the hidden states of a micro-batch and their gradient take from each stage, on their way between
    the last one and every other."""
    last = order[-1]
    links = [costs.link(group, last) for group in order[:-1]]
    each = [0.0 if link is None else 2 * num_bytes * link.busy_seconds_per_byte for link in links]
    return [*each, sum(each)]


def _waits(costs: Costs, order: Sequence[Group], bounds: Sequence[int]) -> list[float]:
    """Seconds of a step in which each stage waits: for the first forwards of the stages in front of it, and for their last
    backwards."""
    of = step_costs(costs, order, bounds)
    transfers = (0.0, *of.transfer)
    waits = [0.0]
    for stage in range(1, len(order)):
        waits.append(waits[-1] + of.forward[stage - 1] + of.backward[stage - 1] + 2 * transfers[stage])
    return waits


def _level(taken: Sequence[float], speeds: Sequence[float], work: float) -> list[float]:
    """Divide ``work`` (seconds at speed 1) so that those who get some of it all end at the same time."""
    order = sorted(range(len(taken)), key=lambda stage: taken[stage])
    level, speed, left = 0.0, 0.0, work
    for place, stage in enumerate(order):
        speed += speeds[stage]
        level = taken[stage] + left / speed
        following = taken[order[place + 1]] if place + 1 < len(order) else level
        if level <= following:
            break
        left -= (following - taken[stage]) * speed
    return [max(level - own, 0.0) * each for own, each in zip(taken, speeds)]
