"""Of the cuts whose steps take about as long as the shortest, one whose slowest stage is faster.

Where one layer decides how long a step takes, the other stages may share the rest in many ways, and the shortest step of all can
load one of them to the brim to save a transfer. No profile is met exactly: what is saved is lost as soon as that stage is a little
slower than was measured.
"""

from collections.abc import Sequence

from recparallel.partitioning.bottleneck import neighbours
from recparallel.partitioning.costs import Costs, Group
from recparallel.partitioning.device_order import minimize_step_any_order
from recparallel.partitioning.simulator import simulate
from recparallel.partitioning.step_costs import micro_batches_of, step_costs
from recparallel.partitioning.step_time import MOST_WORK, minimize_step
from recparallel.plan import Partition, Profile

SLACK = 0.005
"""By which share a step may be longer for it."""

GAIN = 0.001
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
    stages = _Stages(costs, order)
    bounds = partition.bounds
    seconds, own = stages.step(bounds), stages.seconds(bounds)
    limit, seen = seconds * (1 + SLACK), {bounds}
    while True:
        load = sorted(own, reverse=True)
        moved = [(cut, stages.seconds_after(own, cut, place)) for cut, place in _moves(bounds) if cut not in seen]
        better = [(sorted(new, reverse=True), cut, new) for cut, new in moved if stages.fit(cut)]
        for changed, cut, new in sorted(better):
            if _is_faster(changed, load) and stages.work_left > 0 and (took := stages.step(cut)) <= limit:
                bounds, seconds, own = cut, took, new
                seen.add(cut)
                break
        else:
            break
    return partition.model_copy(update={"bounds": bounds, "step_seconds": seconds, "stage_seconds": tuple(own)})


class _Stages:
    """What cuts cost on devices in one order; the work of simulating them is counted down."""

    def __init__(self, costs: Costs, order: Sequence[Group]) -> None:
        self.costs, self.order = costs, order
        self.tables = [costs.stage_seconds(group, *neighbours(order, s)) for s, group in enumerate(order)]
        self.inputs = [costs.input_seconds(before, group) for before, group in zip((None, *order), order)]
        self.needs = [costs.stage_bytes(s) for s in range(len(order))]
        self.schedule = costs.schedule.programs(len(order), micro_batches_of(costs.profile))
        self.work_left = MOST_WORK // 4

    def step(self, bounds: Sequence[int]) -> float:
        self.work_left -= sum(map(len, self.schedule))
        return simulate(self.schedule, step_costs(self.costs, self.order, bounds)).seconds

    def seconds(self, bounds: Sequence[int]) -> list[float]:
        """As ``Partition.stage_seconds``."""
        return [self._one(stage, a, b) for stage, (a, b) in enumerate(zip(bounds, bounds[1:]))]

    def seconds_after(self, own: Sequence[float], bounds: Sequence[int], place: int) -> list[float]:
        """The same, from those of a cut that differs in the bound at ``place`` alone."""
        changed = list(own)
        for stage in (place - 1, place):
            changed[stage] = self._one(stage, bounds[stage], bounds[stage + 1])
        return changed

    def fit(self, bounds: Sequence[int]) -> bool:
        """Whether every stage fits into its device's memory."""
        return all(
            group.memory_bytes is None or ends[b] - begins[a] <= group.memory_bytes
            for group, (ends, begins), a, b in zip(self.order, self.needs, bounds, bounds[1:])
        )

    def _one(self, stage: int, a: int, b: int) -> float:
        ends, begins = self.tables[stage]
        return max(float(ends[b] - begins[a]), float(self.inputs[stage][a]), 0.0)


def _is_faster(load: Sequence[float], than: Sequence[float]) -> bool:
    """By the slowest stage that is not about as slow as before; the slowest of all is not slower, but for rounding."""
    if load[0] > than[0] * (1 + _ROUNDING):
        return False
    for new, old in zip(load, than):
        if abs(new - old) > GAIN * old:
            return new < old
    return False


def _moves(bounds: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
    """Cuts that differ in one bound by one layer, and that bound's place."""
    return [
        ((*bounds[:place], moved, *bounds[place + 1 :]), place)
        for place in range(1, len(bounds) - 1)
        for moved in (bounds[place] - 1, bounds[place] + 1)
        if bounds[place - 1] < moved < bounds[place + 1]
    ]
