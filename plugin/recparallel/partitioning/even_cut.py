"""Of the cuts whose steps take about as long as the shortest, one whose slowest stage is faster.

Where one layer decides how long a step takes, the other stages may share the rest in many ways, and the shortest step of all can
load one of them to the brim to save a transfer. No profile is met exactly: what is saved is lost as soon as that stage is a little
slower than was measured.
"""

from collections.abc import Sequence

from recparallel.partitioning.bottleneck import stage_seconds
from recparallel.partitioning.costs import Costs, Group
from recparallel.partitioning.device_order import minimize_step_any_order
from recparallel.partitioning.simulator import simulate
from recparallel.partitioning.step_costs import micro_batches_of, step_costs
from recparallel.partitioning.step_time import minimize_step
from recparallel.plan import Partition, Profile

SLACK = 0.005
"""By which share a step may be longer for it."""

GAIN = 0.01
"""By which share a stage must be faster for it."""


_ROUNDING = 1e-12


def minimize_step_evenly(profile: Profile, stages: int) -> Partition:
    """:func:`~recparallel.partitioning.step_time.minimize_step`, evened out (:func:`evened`)."""
    return evened(profile, minimize_step(profile, stages))


def minimize_step_any_order_evenly(profile: Profile, stages: int) -> Partition:
    """:func:`~recparallel.partitioning.device_order.minimize_step_any_order`, evened out (:func:`evened`)."""
    return evened(profile, minimize_step_any_order(profile, stages))


def evened(profile: Profile, partition: Partition) -> Partition:
    """Move single layers over the boundaries of a cut, one after the other, as long as that makes the slowest stage faster by
    :data:`GAIN`, or of equal ones the next slowest, and keeps the simulated step within :data:`SLACK` of that of ``partition``.

    Of several moves the one that helps most is made. Memory limits are kept. ``optimal`` says what it said before, up to the slack.
    """
    costs = Costs(profile, partition.num_stages)
    order = [costs.groups[d] for d in partition.device_order] or list(costs.groups)
    schedule = costs.schedule.programs(partition.num_stages, micro_batches_of(profile))

    def seconds_of(bounds: Sequence[int]) -> float:
        return simulate(schedule, step_costs(costs, order, bounds)).seconds

    bounds = partition.bounds
    seconds, load = seconds_of(bounds), _load(costs, order, bounds)
    limit = seconds * (1 + SLACK)
    seen = {bounds}
    while True:
        loads = {cut: _load(costs, order, cut) for cut in _moves(bounds) if cut not in seen}
        better = sorted((own, cut) for cut, own in loads.items() if _is_faster(own, load))
        for own, cut in better:
            if _fits(costs, order, cut) and (took := seconds_of(cut)) <= limit:
                bounds, seconds, load = cut, took, own
                seen.add(cut)
                break
        else:
            break
    return partition.model_copy(
        update={"bounds": bounds, "step_seconds": seconds, "stage_seconds": stage_seconds(costs, order, bounds)}
    )


def _load(costs: Costs, order: Sequence[Group], bounds: Sequence[int]) -> list[float]:
    return sorted(stage_seconds(costs, order, bounds), reverse=True)


def _is_faster(load: Sequence[float], than: Sequence[float]) -> bool:
    """By the slowest stage that is not about as slow as before; the slowest of all is not slower, but for rounding."""
    if load[0] > than[0] * (1 + _ROUNDING):
        return False
    for new, old in zip(load, than):
        if abs(new - old) > GAIN * old:
            return new < old
    return False


def _moves(bounds: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [
        (*bounds[:place], moved, *bounds[place + 1 :])
        for place in range(1, len(bounds) - 1)
        for moved in (bounds[place] - 1, bounds[place] + 1)
        if bounds[place - 1] < moved < bounds[place + 1]
    ]


def _fits(costs: Costs, order: Sequence[Group], bounds: Sequence[int]) -> bool:
    for stage, (group, a, b) in enumerate(zip(order, bounds, bounds[1:])):
        ends, begins = costs.stage_bytes(stage)
        if group.memory_bytes is not None and ends[b] - begins[a] > group.memory_bytes:
            return False
    return True
