"""Cut so that a whole training step, simulated, is as short as a contiguous cut allows.

The slowest stage decides most of a step, but not all: the pipeline also fills and drains, tied gradients travel, and
the optimizer runs. Of the many cuts with the same slowest stage this finds the best, and now and then one with a
slightly slower stage that is better still.

Branch and bound over the cuts from left to right. The time of a step is at least, for every stage: the forwards in front
of it, all that it does itself, what it waits for its first gradient once it has made all forwards that it may make before, the
backwards in front of it, and the first stage's update. For stages not yet cut, the same over the best way to cut the remaining
layers, which a recurrence from the right gives for every first layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparallel.partitioning.bottleneck import cut_in_order, neighbours, stage_seconds
from recparallel.partitioning.costs import Costs, Floats, Group
from recparallel.partitioning.simulator import simulate
from recparallel.partitioning.step_costs import micro_batches_of, step_costs
from recparallel.plan import Partition, Profile

MOST_WORK = 2_000_000
"""Instructions simulated and cuts weighed, after which a search stops and returns the best cut that it has found, marked as
not proved. Some seconds on a slow core; work is counted, not time, so every rank finds the same cut."""

_ROUNDING = 1e-12


def minimize_step(profile: Profile, stages: int) -> Partition:
    """The cut with the shortest simulated step, devices in their given order.

    1. Begin with the cut of the fastest slowest stage: the result is never slower.
    2. Descend into the cuts from left to right, the most promising first, as long as their bound lies below the best step.
    3. Simulate those that are reached. ``optimal`` is False where the search stopped at :data:`MOST_WORK`.

    Raises:
        PartitionError: as :func:`~recparallel.partitioning.bottleneck.minimize_bottleneck`, and where the profile does
            not say how many micro-batches a step has.
    """
    micro_batches_of(profile)
    costs = Costs(profile, stages)
    return search(costs, costs.groups, method="simulated")


def search(
    costs: Costs, order: Sequence[Group], *, method: str, better_than: float = np.inf, most_work: int = MOST_WORK
) -> Partition:
    """The best cut for devices in this order; one that is not better than ``better_than`` need not be the best."""
    return _Search(costs, order, most_work).run(method, better_than)


def least_step(costs: Costs, order: Sequence[Group]) -> float:
    """Seconds that no step over any cut for devices in this order can beat: a stage's micro-batches and its wait for the first
    gradient, behind the forwards and before the backwards of the stages in front of it, and then the first stage's update. The
    exchange of tied tables comes on top. inf where nothing fits."""
    return float(_Search(costs, order, most_work=0).least)


@dataclass
class _Best:
    bounds: tuple[int, ...]
    seconds: float


class _Search:
    def __init__(self, costs: Costs, order: Sequence[Group], most_work: int) -> None:
        self.costs, self.order, self.work_left = costs, order, most_work
        self.stages, self.n = len(order), costs.num_layers
        self.micro_batches = micro_batches_of(costs.profile)
        self.schedule = costs.schedule.programs(self.stages, self.micro_batches)
        self.tables = [costs.stage_seconds(group, *neighbours(order, s)) for s, group in enumerate(order)]
        self.needs = [costs.stage_bytes(s) for s in range(self.stages)]
        # Of each stage, by its begin: the first activation into it and the last gradient out of it, and what of that its own
        # micro-batches do not count already.
        self.into = [2 * costs.transfer(a, b) for a, b in zip((None, *order), order)]
        self.on_top = [np.zeros_like(into) if costs.schedule.blocking else into for into in self.into]
        updates = np.concatenate([[0.0], np.cumsum([layer.update_seconds for layer in costs.profile.layers])])
        self.updates = updates
        self.instructions = sum(map(len, self.schedule))
        self.round_trip = self._shortest_round_trips()
        self.least = np.inf
        self.rest = self._least_of_rest()

    def run(self, method: str, better_than: float) -> Partition:
        first = cut_in_order(self.costs, self.order, method=method)
        self.best = _Best(first.bounds, self._simulate(first.bounds))
        self.limit = min(self.best.seconds, better_than)
        self._descend((0,), front=0.0, floor=0.0)
        bounds = self.best.bounds
        return Partition(
            bounds=bounds,
            method=method,
            stage_seconds=stage_seconds(self.costs, self.order, bounds),
            step_seconds=self.best.seconds,
            optimal=self.work_left > 0,
        )

    def _forwards(self, stage: int) -> tuple[Floats, Floats]:
        """``(ends, begins)`` of the seconds of a stage's forward, with what the transfers at both ends cost it."""
        group, (before, behind) = self.order[stage], neighbours(self.order, stage)
        work = self.costs.forward / group.speed
        return work + self.costs.crossing(group, behind), work - self.costs.crossing(group, before)

    def _shortest_round_trips(self) -> list[Floats]:
        """``[s][i]``: the least seconds between the end of a forward in front of layer ``i`` and the arrival of its gradient, if
        stages ``s …`` hold layers ``i …``; inf where they cannot."""
        n = self.n
        trip = np.full(n + 1, np.inf)
        trip[n] = 0.0
        found = [trip]
        for stage in reversed(range(self.stages)):
            work = self.costs.seconds / self.order[stage].speed
            value = np.where(_later(n), work[None, :] - work[:, None] + trip[None, :], np.inf)
            trip = value.min(axis=1) + self.into[stage]
            found.append(trip)
        return found[::-1]

    def _waits(self, stage: int) -> Floats:
        """``[i, j]``: seconds that stage ``i … j`` has nothing to do before its first gradient comes: it takes a round trip,
        during which the stage may make all but the first of the forwards that it keeps. Left out, as 0, where transfers block
        and are themselves a part of the trip."""
        if self.costs.schedule.blocking:
            return np.zeros((self.n + 1, self.n + 1))
        trip = self.round_trip[stage + 1][None, :]
        ends, begins = self._forwards(stage)
        ahead = min(self.costs.schedule.ahead(stage, self.stages), self.micro_batches)
        return np.maximum(trip - (ahead - 1) * (ends[None, :] - begins[:, None]), 0.0)

    def _least_of_rest(self) -> list[Floats]:
        """``[s][i]``: a bound on what stages ``s …`` add to the time in front of them if they share layers ``i …`` in the best
        way; inf if none fits.

        ``R[s][i] = min over j of max(M · cost_s(i, j) + wait_s(i, j), inside_s(i, j) + 2 · transfer into s + R[s + 1][j])``.
        Where transfers do not block, ``cost_s`` is without them, and those of the first activation and the last gradient come on
        top. Of the first stage, with the update behind it, only the best is kept, as :attr:`least`.
        """
        n, stages = self.n, self.stages
        rest = np.full(n + 1, np.inf)
        rest[n] = 0.0
        found = [rest]
        self.waits = [self._waits(stage) for stage in range(stages)]
        for stage in reversed(range(stages)):
            ends, begins = self.tables[stage]
            own = self.micro_batches * (ends[None, :] - begins[:, None]) + self.on_top[stage][:, None]
            work = self.costs.seconds / self.order[stage].speed
            through = work[None, :] - work[:, None] + self.into[stage][:, None] + rest[None, :]
            value = np.where(_later(n), np.maximum(own + self.waits[stage], through), np.inf)
            limit = self.order[stage].memory_bytes
            if limit is not None:
                more, less = self.needs[stage]
                value[more[None, :] - less[:, None] > limit] = np.inf
            if stage == 0:
                self.least = float((value[0] + self.updates / self.order[0].speed).min())
            rest = value.min(axis=1)
            found.append(rest)
        return found[::-1]

    def _descend(self, bounds: tuple[int, ...], *, front: float, floor: float) -> None:
        """Try every end of the next stage, the most promising first.

        ``front`` is the time that one micro-batch spends in the stages already cut, forth and back, with the transfers
        between them; ``floor`` is a bound that holds already.
        """
        stage, begin = len(bounds) - 1, bounds[-1]
        if stage == self.stages:
            self._try(bounds)
            return
        speed = self.order[stage].speed
        options = []
        for end in self._ends(stage, begin):
            own = float(self.tables[stage][0][end] - self.tables[stage][1][begin])
            if not self._fits(stage, begin, end):
                continue
            updates = float(self.updates[end] - self.updates[begin]) / speed
            first_update = updates if stage == 0 else self._first_update(bounds)
            here = front + float(self.on_top[stage][begin]) + self.micro_batches * own + first_update
            here += float(self.waits[stage][begin, end])
            inside = float(self.costs.seconds[end] - self.costs.seconds[begin]) / speed
            behind = front + inside + float(self.into[stage][begin])
            rest = behind + float(self.rest[stage + 1][end]) if stage + 1 < self.stages else 0.0
            bound = max(floor, here, rest + first_update)
            options.append((bound, end, behind))
        self.work_left -= len(options)
        for bound, end, behind in sorted(options):
            if bound >= self.limit * (1 - _ROUNDING) or self.work_left <= 0:
                break
            self._descend((*bounds, end), front=behind, floor=bound)

    def _ends(self, stage: int, begin: int) -> range:
        if stage == self.stages - 1:
            return range(self.n, self.n + 1)
        return range(begin + 1, self.n - (self.stages - stage - 1) + 1)

    def _fits(self, stage: int, begin: int, end: int) -> bool:
        limit = self.order[stage].memory_bytes
        return limit is None or bool(self.needs[stage][0][end] - self.needs[stage][1][begin] <= limit)

    def _first_update(self, bounds: Sequence[int]) -> float:
        return float(self.updates[bounds[1]]) / self.order[0].speed

    def _try(self, bounds: tuple[int, ...]) -> None:
        seconds = self._simulate(bounds)
        if seconds < self.limit:
            self.best, self.limit = _Best(bounds, seconds), seconds

    def _simulate(self, bounds: Sequence[int]) -> float:
        self.work_left -= self.instructions
        return simulate(self.schedule, step_costs(self.costs, self.order, bounds)).seconds


def _later(n: int) -> NDArray[np.bool_]:
    """``[i, j]``: a stage that begins at ``i`` may end at ``j``."""
    return np.triu(np.ones((n + 1, n + 1), dtype=bool), k=1)
