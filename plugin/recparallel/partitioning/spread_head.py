"""Share the head's rows among stages of a pipeline, where that makes a step shorter.

Source: Yeung et al., "Balancing Pipeline Parallelism with Vocabulary Parallelism", MLSys 2025, which shares them evenly among all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from recparallel.errors import PartitionError
from recparallel.partitioning.bottleneck import stage_seconds
from recparallel.partitioning.costs import Costs, Group
from recparallel.partitioning.simulator import simulate
from recparallel.partitioning.spread_schedule import (
    HIDDEN,
    NORMALIZER,
    PART,
    SUMMARY,
    activations_kept,
    spread_head_programs,
)
from recparallel.partitioning.step_costs import step_costs
from recparallel.plan import Device, LayerCost, Partition, Profile, SpreadLayer

MOST_WORK = 1_000_000
"""Instructions simulated, after which a search stops and returns the best that it has found; counted, so that all ranks agree."""

_SIMULATED = 4
"""Micro-batches for each stage that are simulated; those beyond take the time of the slowest stage."""

_SCORED_AT_ONCE = 2
"""Micro-batches whose scores a stage keeps: most make those of one before the gradient of the one in front of it."""

Solver = Callable[[Profile, int], Partition]


def spread_last_layer(profile: Profile, stages: int, solve: Solver) -> Partition:
    """A cut of all layers but the last, and the stages that share the last one.

    1. ``solve`` cuts the other layers; where devices may change places, their order stays as it finds it.
    2. Sharing costs messages between the last stage and every other that has rows, and the first stages have the most time: a
       later one waits for its first activation, and at the end of a step for the stages in front of it. So the last stage
       shares the head with the first one, or the first two, and so on.
    3. For each of these, rows go to the stages that would be done first, until all that have some are done at the same time or
       their memory is full.
    4. Beginning with the choice of the shortest simulated step, layers move from stage to stage as long as the step becomes
       shorter. With many stages the search may end at :data:`MOST_WORK`.

    Raises:
        PartitionError: there are not enough layers; nothing fits into memory; or as ``solve``.
    """
    if len(profile.layers) <= stages:
        raise PartitionError(
            f"{stages} stages that share the head need at least {stages} layers in front of it, the model has "
            f"{len(profile.layers) - 1}"
        )
    others, head = profile.model_copy(update={"layers": profile.layers[:-1], "shapes": ()}), profile.layers[-1]
    start = solve(others.model_copy(update={"devices": _with_room_for(head, profile.devices, stages)}), stages)
    costs = Costs(others, stages)
    order = [costs.groups[d] for d in start.device_order or range(stages)]
    best = _Search(costs, order, head).run(start.bounds)
    if best.seconds == float("inf"):
        raise PartitionError(
            f"no cut that was tried leaves room for the head on {stages} stages that share it; smaller micro-batches, more stages "
            "or devices with more memory need or give more of it"
        )
    sharing = [stage for stage, share in enumerate(best.shares) if share or stage in (0, stages - 1)]
    return start.model_copy(
        update={
            "bounds": (*best.bounds[:-1], len(profile.layers)),
            "stage_seconds": best.stage_seconds,
            "step_seconds": best.seconds,
            "optimal": False,
            "spread": (
                SpreadLayer(
                    layer=len(profile.layers) - 1,
                    stages=tuple(sharing),
                    shares=tuple(best.shares[stage] for stage in sharing),
                ),
            ),
        }
    )


def _bytes_of(head: LayerCost) -> int:
    return head.state_bytes + _SCORED_AT_ONCE * head.activation_bytes


def _with_room_for(head: LayerCost, devices: Sequence[Device], stages: int) -> tuple[Device, ...]:
    """Devices with the memory that an equal share of the head leaves."""
    room = -(-_bytes_of(head) // stages)
    return tuple(
        device
        if device.memory_bytes is None
        else device.model_copy(update={"memory_bytes": max(device.memory_bytes - room, 0)})
        for device in devices
    )


@dataclass(frozen=True)
class _Found:
    """A cut of the layers in front of the head, the share of each stage, its seconds for a micro-batch, and those of the step."""

    bounds: tuple[int, ...]
    shares: tuple[float, ...] = ()
    stage_seconds: tuple[float, ...] = ()
    seconds: float = float("inf")


class _Search:
    def __init__(self, costs: Costs, order: Sequence[Group], head: LayerCost) -> None:
        self.costs, self.order, self.head = costs, order, head
        self.stages, self.number = len(order), costs.num_micro_batches
        self.simulated = min(self.number, _SIMULATED * self.stages)
        self.work_left = MOST_WORK

    def run(self, bounds: tuple[int, ...]) -> _Found:
        """The best that is found from ``bounds``: every choice of stages is looked at once before any layer moves."""
        last = self.stages - 1
        starts: list[tuple[_Found, tuple[int, ...]]] = []
        for first in dict.fromkeys((1, last, *range(2, last))):  # the two ends, should the work end here
            if starts and self.work_left <= 0:
                break
            sharing = (*range(first), last)
            starts.append((self.weigh(bounds, sharing), sharing))
        starts.sort(key=lambda start: start[0].seconds)
        found = [self.descend(start, sharing) for start, sharing in starts]
        return min(found, key=lambda one: one.seconds)

    def descend(self, best: _Found, sharing: tuple[int, ...]) -> _Found:
        """To a cut from which no move of one layer makes the step shorter."""
        moved = True
        while moved and self.work_left > 0:
            moved = False
            for nearby in _moves(best.bounds):
                if self.work_left <= 0:
                    break
                found = self.weigh(nearby, sharing)
                if found.seconds < best.seconds * (1 - 1e-9):
                    best, moved = found, True
        return best

    def weigh(self, bounds: tuple[int, ...], sharing: tuple[int, ...]) -> _Found:
        """The shares under which the stages are level, and the step that comes of it; inf seconds where it does not fit."""
        costs, order, head = self.costs, self.order, self.head
        one_way = self._messages(sharing)
        taken = [own + 2 * extra for own, extra in zip(stage_seconds(costs, order, bounds), one_way)]
        step = step_costs(costs, order, bounds)
        waits = _waits(step.forward, step.backward, step.transfer)
        work = [0.0] * self.stages
        speeds = [order[stage].speed for stage in sharing]
        most = self._most_shares(bounds)
        level = _level_within(
            [taken[s] + waits[s] / self.number for s in sharing],
            speeds,
            head.seconds,
            [most[s] * head.seconds for s in sharing],
        )
        if level is None or min(most) < 0:
            return _Found(bounds)
        for stage, part in zip(sharing, level):
            work[stage] = part
        total = sum(work)
        shares = tuple(part / total if total else float(s == self.stages - 1) for s, part in enumerate(work))
        seconds = tuple(own + part / group.speed for own, part, group in zip(taken, work, order))
        last = self.stages - 1
        forth = [share * head.forward_seconds / group.speed for share, group in zip(shares, order)]
        back = [share * head.backward_seconds / group.speed for share, group in zip(shares, order)]
        wire = self._wire(sharing)
        played = replace(
            step,
            forward=[own + (one_way[s] if s == last else 0.0) for s, own in enumerate(step.forward)],
            backward=[own + (one_way[s] if s == last else 0.0) for s, own in enumerate(step.backward)],
            update=[
                own + share * head.update_seconds / group.speed for own, share, group in zip(step.update, shares, order)
            ],
            others=(
                [own + (0.0 if s == last else one_way[s]) for s, own in enumerate(forth)],
                [0.0] * self.stages,
                [own + (0.0 if s == last else one_way[s]) for s, own in enumerate(back)],
            ),
            messages={HIDDEN: wire, PART: wire, SUMMARY: self._latencies(), NORMALIZER: self._latencies()},
        )
        programs = spread_head_programs(self.stages, self.simulated, sharing)
        self.work_left -= sum(map(len, programs))
        rest = (self.number - self.simulated) * max(seconds)
        return _Found(bounds, shares, seconds, simulate(programs, played).seconds + rest)

    def _messages(self, sharing: Sequence[int]) -> list[float]:
        """Seconds of computing that the hidden states of a micro-batch take from each stage on their way between the last one and
        every other with rows; their gradient takes as much."""
        each = [0.0] * self.stages
        for stage in sharing[:-1]:
            link = self.costs.link(self.order[stage], self.order[-1])
            each[stage] = 0.0 if link is None else self._hidden_bytes * link.busy_seconds_per_byte
        return [*each[:-1], sum(each)]

    def _wire(self, sharing: Sequence[int]) -> list[float]:
        """Seconds of hidden states or their gradient on their way to or from each stage: all pass the last stage's link."""
        links = [self.costs.link(group, self.order[-1]) for group in self.order]
        times = [
            0.0 if link is None else link.latency_seconds + self._hidden_bytes / link.bytes_per_second for link in links
        ]
        return [len(sharing[:-1]) * time for time in times]

    def _latencies(self) -> list[float]:
        links = [self.costs.link(group, self.order[-1]) for group in self.order]
        return [0.0 if link is None else link.latency_seconds for link in links]

    @property
    def _hidden_bytes(self) -> int:
        return self.costs.profile.layers[-1].boundary_bytes

    def _most_shares(self, bounds: Sequence[int]) -> list[float]:
        """The share of the head for which each stage has memory; below 0 where its own layers do not fit."""
        costs, whole = self.costs, _bytes_of(self.head)
        found = []
        for stage, (group, a, b) in enumerate(zip(self.order, bounds, bounds[1:])):
            kept = min(activations_kept(stage, self.stages), self.number)
            activations = costs.activations[b] - costs.activations[a] + costs.boundary[a] + costs.boundary[b]
            own = costs.state[b] - costs.state[a] + kept * activations
            free = float("inf") if group.memory_bytes is None else group.memory_bytes - float(own)
            found.append(free / whole if whole else float("inf") if free >= 0 else -1.0)
        return found


def _moves(bounds: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All cuts that take one layer from a stage and give one to another, those between them shifted by one; none is empty."""
    for first in range(1, len(bounds) - 1):
        for last in range(first, len(bounds) - 1):
            for by in (-1, 1):
                moved = (*bounds[:first], *(bound + by for bound in bounds[first : last + 1]), *bounds[last + 1 :])
                if all(a < b for a, b in zip(moved, moved[1:])):
                    yield moved


def _waits(forward: Sequence[float], backward: Sequence[float], transfer: Sequence[float]) -> list[float]:
    """Seconds of a step in which each stage waits: for the first forwards of the stages in front of it, and for their last
    backwards."""
    waits = [0.0]
    for stage, crossing in enumerate(transfer):
        waits.append(waits[-1] + forward[stage] + backward[stage] + 2 * crossing)
    return waits


def _level_within(
    taken: Sequence[float], speeds: Sequence[float], work: float, most: Sequence[float]
) -> list[float] | None:
    """As :func:`_level`, but each gets at most ``most`` of the work; None where that is less than all of it."""
    found = [0.0] * len(taken)
    open_ = list(range(len(taken)))
    while open_:
        parts = _level([taken[i] for i in open_], [speeds[i] for i in open_], work)
        full = [i for i, part in zip(open_, parts) if part > most[i]]
        if not full:
            for i, part in zip(open_, parts):
                found[i] = part
            return found
        for i in full:
            found[i] = max(most[i], 0.0)
            work -= found[i]
            open_.remove(i)
    return found if work <= 0 else None


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
