"""Cut, and choose in which order devices that differ stand along the pipeline, exactly.

A slow device belongs where a cheap stage can be cut, a slow link where little crosses it. Devices that cannot be told
apart (same speed, memory and links) are of one class; an order of classes is what is searched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from recparallel.errors import PartitionError
from recparallel.partitioning.bottleneck import cut_in_order
from recparallel.partitioning.chain import extend
from recparallel.partitioning.costs import Costs, Floats, Group
from recparallel.partitioning.step_costs import micro_batches_of
from recparallel.partitioning.step_time import MOST_WORK as MOST_STEP_WORK
from recparallel.partitioning.step_time import search
from recparallel.plan import Partition, Profile

MOST_WORK = 5e9
"""Begin-end pairs that the search may look at; beyond, it would take more than some ten seconds."""

MOST_ORDERS = 200
"""Orders of which the whole step is searched; beyond, only that of the best bottleneck and the given one."""


def minimize_bottleneck_any_order(profile: Profile, stages: int) -> Partition:
    """The cut and the order of devices with the fastest slowest stage. The given order is kept where none is better.

    The recurrence of :mod:`recparallel.partitioning.chain` over states (devices used, the last one, the next one).

    Raises:
        PartitionError: as in the given order, and where there are too many different devices to search.
    """
    costs = Costs(profile, stages)
    classes = device_classes(costs)
    if len(classes) == 1:
        return cut_in_order(costs, costs.groups, method="profile_any_order")
    order = _Orders(costs, classes).best()
    return _prefer_given(costs, order, "profile_any_order")


def minimize_step_any_order(profile: Profile, stages: int) -> Partition:
    """The cut and the order of devices with the shortest simulated step.

    Every order that differs is searched (:mod:`recparallel.partitioning.step_time`), up to :data:`MOST_ORDERS`; with more,
    the given one and that of the best bottleneck, and ``optimal`` is False.

    Raises:
        PartitionError: as :func:`minimize_bottleneck_any_order`.
    """
    micro_batches_of(profile)
    costs = Costs(profile, stages)
    classes = device_classes(costs)
    orders = [list(order) for order in islice(different_orders(classes), MOST_ORDERS + 1)]
    all_of_them = len(orders) <= MOST_ORDERS
    given = list(range(stages))
    if not all_of_them:
        orders = [given, list(minimize_bottleneck_any_order(profile, stages).device_order) or given]
    best: Partition | None = None
    failure: PartitionError | None = None
    proved = all_of_them
    for order in sorted(orders, key=lambda order: order != given):
        limit = np.inf if best is None or best.step_seconds is None else best.step_seconds
        try:
            found = search(
                costs,
                [costs.groups[d] for d in order],
                method="simulated_any_order",
                better_than=limit,
                most_work=MOST_STEP_WORK // len(orders),
            )
        except PartitionError as error:  # in this order nothing fits into memory
            failure = failure or error
            continue
        proved &= found.optimal
        if found.step_seconds is not None and found.step_seconds < limit:
            best = found.model_copy(update={"device_order": () if order == given else tuple(order)})
    if best is None:
        assert failure is not None
        raise failure
    return best.model_copy(update={"optimal": proved})


def device_classes(costs: Costs) -> list[list[int]]:
    """Numbers of groups that cannot be told apart, by class, in the order of their first one."""
    classes: list[list[int]] = []
    for number, group in enumerate(costs.groups):
        for own in classes:
            if _alike(costs, costs.groups[own[0]], group):
                own.append(number)
                break
        else:
            classes.append([number])
    return classes


def _alike(costs: Costs, a: Group, b: Group) -> bool:
    if (a.speed, a.memory_bytes) != (b.speed, b.memory_bytes):
        return False
    others = [group for group in costs.groups if group not in (a, b)]
    return all(costs.link(a, other) == costs.link(b, other) for other in others)


def different_orders(classes: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Every order of the groups, those of one class in their own order."""

    def rest(used: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if all(used[c] == len(own) for c, own in enumerate(classes)):
            yield ()
            return
        for c, own in enumerate(classes):
            if used[c] < len(own):
                for behind in rest((*used[:c], used[c] + 1, *used[c + 1 :])):
                    yield (own[used[c]], *behind)

    return rest((0,) * len(classes))


def _prefer_given(costs: Costs, order: Sequence[int] | None, method: str) -> Partition:
    given = list(range(costs.stages))
    if order is None or list(order) == given:
        return cut_in_order(costs, costs.groups, method=method)
    found = cut_in_order(costs, [costs.groups[d] for d in order], method=method)
    found = found.model_copy(update={"device_order": tuple(order)})
    try:
        as_given = cut_in_order(costs, costs.groups, method=method)
    except PartitionError:  # only another order fits into memory
        return found
    return as_given if max(as_given.stage_seconds) <= max(found.stage_seconds) else found


_State = tuple[tuple[int, ...], int, int | None]
"""Devices used of each class, the class of the last one, and the class that comes next."""


@dataclass
class _Reached:
    best: Floats
    begin: NDArray[np.intp]
    before: list[_State | None]
    """Of each end, the state that it was reached from."""


class _Orders:
    def __init__(self, costs: Costs, classes: Sequence[Sequence[int]]) -> None:
        self.costs, self.classes = costs, classes
        self.limited = any(group.memory_bytes is not None for group in costs.groups)
        size = (costs.num_layers - costs.stages + 1) ** 2
        work = np.prod([len(own) + 1.0 for own in classes]) * len(classes) ** 3 * max(size, 2_000)
        if work > MOST_WORK:
            raise PartitionError(
                f"{len(classes)} classes of different devices in {costs.stages} stages of {costs.num_layers} layers are too many "
                "to search every order; give the order yourself (methods 'profile' and 'simulated' keep that of the "
                "profile), or round speeds so that more devices are alike"
            )

    def best(self) -> list[int] | None:
        """The best order of groups, or None if none fits into memory."""
        costs, classes = self.costs, self.classes
        none = (0,) * len(classes)
        start = np.full(costs.num_layers + 1, np.inf)
        start[0] = -np.inf
        levels: list[dict[_State, _Reached]] = []
        for stage in range(costs.stages):
            level: dict[_State, _Reached] = {}
            for used, before, here, best in self._predecessors(stage, levels, none, start):
                for behind in self._next(stage, used):
                    best_here, begin = self._extend(stage, best, before and before[1], here, behind)
                    self._keep(level, (used, here, behind), before, best_here, begin)
            levels.append(level)
        return self._walk_back(levels)

    def _predecessors(
        self, stage: int, levels: Sequence[dict[_State, _Reached]], none: tuple[int, ...], start: Floats
    ) -> Iterator[tuple[tuple[int, ...], _State | None, int, Floats]]:
        if stage == 0:
            for here in range(len(self.classes)):
                yield _with(none, here), None, here, start
            return
        for before, reached in levels[-1].items():
            assert before[2] is not None
            yield _with(before[0], before[2]), before, before[2], reached.best

    def _next(self, stage: int, used: tuple[int, ...]) -> list[int | None]:
        if stage == self.costs.stages - 1:
            return [None]
        return [c for c, own in enumerate(self.classes) if used[c] < len(own)]

    def _extend(
        self, stage: int, best: Floats, before: int | None, here: int, behind: int | None
    ) -> tuple[Floats, NDArray[np.intp]]:
        own = self.classes[here]
        group = self.costs.groups[own[0]]
        left = self._neighbour(before, here)
        return extend(
            np.maximum(best, self.costs.input_seconds(left, group)),
            self.costs.stage_seconds(group, left, self._neighbour(behind, here)),
            first=stage,
            last=self.costs.num_layers - (self.costs.stages - stage),
            needs=self.costs.stage_bytes(stage) if self.limited else None,
            limit=group.memory_bytes,
        )

    def _neighbour(self, other: int | None, here: int) -> Group | None:
        """Any group of that class but the first of ``here``: all have the same link to it."""
        if other is None:
            return None
        own = self.classes[other]
        return self.costs.groups[own[1] if other == here else own[0]]

    @staticmethod
    def _keep(
        level: dict[_State, _Reached], state: _State, before: _State | None, best: Floats, begin: NDArray[np.intp]
    ) -> None:
        if state not in level:
            level[state] = _Reached(best, begin, [before] * len(best))
            return
        reached = level[state]
        for end in np.flatnonzero(best < reached.best):
            reached.best[end], reached.begin[end], reached.before[end] = best[end], begin[end], before

    def _walk_back(self, levels: Sequence[dict[_State, _Reached]]) -> list[int] | None:
        end = self.costs.num_layers
        state: _State | None = min(levels[-1], key=lambda state: levels[-1][state].best[end])
        assert state is not None
        if levels[-1][state].best[end] == np.inf:
            return None
        chosen = []
        for level in reversed(levels):
            assert state is not None
            chosen.append(state[1])
            reached = level[state]
            end, state = int(reached.begin[end]), reached.before[end]
        numbers = [iter(own) for own in self.classes]
        return [next(numbers[c]) for c in reversed(chosen)]


def _with(used: tuple[int, ...], one: int) -> tuple[int, ...]:
    return (*used[:one], used[one] + 1, *used[one + 1 :])
