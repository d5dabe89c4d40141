"""What a stage costs, as a function of where it begins and ends: the ground under every solver.

Seconds of stage ``i … j`` on a device of speed ``v``, for one micro-batch: ``(W[j] - W[i]) / v``, and what an activation and its
gradient cost that cross each of its two boundaries. Where transfers block, that is their whole time; where they run beside the
computation, what they take from it, and the stage cannot be faster than its input arrives. Bytes: weights, gradients and
optimizer state once; activations, and the tensors at both boundaries, once for every micro-batch in flight. Both have the
form ``ends[j] - begins[i]``, so a solver gets them for all stages at once by one subtraction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from recparallel.errors import PartitionError
from recparallel.partitioning.schedules import PIPELINE_SCHEDULES
from recparallel.plan import DEFAULT_SCHEDULE, LinkCost, Profile

Floats: TypeAlias = NDArray[np.float64]
CROSSINGS = 2
"""Tensors that cross a boundary in each micro-batch: the activation forth, its gradient back."""


@dataclass(frozen=True)
class Group:
    """The devices that run one stage, one for each replica; they go at the pace of the slowest.

    Attributes:
        members: their numbers in the profile.
        speed: of the slowest.
        memory_bytes: of the smallest; None is no limit.
        name: of the first.
    """

    members: tuple[int, ...]
    speed: float = 1.0
    memory_bytes: int | None = None
    name: str = "device"


class Costs:
    """A profile as arrays over cuts: ``W[j]`` belongs to the cut before layer ``j``.

    Args:
        profile: what was measured.
        stages: of the pipeline.

    Raises:
        PartitionError: no stage, more stages than layers, or devices that cannot be divided among the stages.
    """

    def __init__(self, profile: Profile, stages: int) -> None:
        check_stages(profile, stages)
        self.profile = profile
        self.stages = stages
        self.num_layers = len(profile.layers)
        self.groups = device_groups(profile, stages)
        layers = profile.layers
        self.forward = _prefix([layer.forward_seconds for layer in layers])
        self.backward = _prefix([layer.backward_seconds for layer in layers])
        self.seconds = _prefix([layer.seconds for layer in layers])
        self.state = _prefix([layer.state_bytes for layer in layers])
        self.activations = _prefix([layer.activation_bytes for layer in layers])
        self.boundary = np.array([0, *(layer.boundary_bytes for layer in layers[:-1]), 0], dtype=np.float64)
        self.crossing_bytes = np.array([0, *(layer.crossing_bytes for layer in layers[:-1]), 0], dtype=np.float64)
        self.num_micro_batches = profile.num_micro_batches or stages
        self.schedule = PIPELINE_SCHEDULES[profile.schedule or DEFAULT_SCHEDULE]

    def link(self, a: Group, b: Group) -> LinkCost | None:
        """The slowest of the links between two groups, replica by replica; None costs nothing."""
        links = [self.profile.link(x, y) for x, y in zip(a.members, b.members)]
        slowest = [link for link in links if link is not None]
        if not slowest:
            return None
        return LinkCost(
            bytes_per_second=min(link.bytes_per_second for link in slowest),
            latency_seconds=max(link.latency_seconds for link in slowest),
            busy_seconds_per_byte=max(link.busy_seconds_per_byte for link in slowest),
        )

    def transfer(self, a: Group | None, b: Group | None) -> Floats:
        """Seconds for one tensor to cross each cut between two groups, or at an end of the pipeline nothing."""
        link = None if a is None or b is None else self.link(a, b)
        if link is None:
            return np.zeros_like(self.boundary)
        return link.latency_seconds + self.crossing_bytes / link.bytes_per_second

    def stage_seconds(self, group: Group, before: Group | None, behind: Group | None) -> tuple[Floats, Floats]:
        """``(ends, begins)`` of the seconds of a stage on ``group`` between its two neighbours."""
        work = self.seconds / group.speed
        ends = work + CROSSINGS * self.crossing(group, behind)
        begins = work - CROSSINGS * self.crossing(group, before)
        return ends, begins

    def crossing(self, own: Group, other: Group | None) -> Floats:
        """Seconds that one tensor which crosses each cut to a neighbour costs a stage on ``own``: all of its transfer where
        that blocks, else what it takes from the computation beside it."""
        if self.schedule.blocking:
            return self.transfer(own, other)
        return self.busy(own, other)

    def busy(self, own: Group, other: Group | None) -> Floats:
        """Seconds of computation on ``own`` that one tensor takes which crosses each cut beside it."""
        link = None if other is None else self.link(own, other)
        if link is None or self.schedule.blocking:
            return np.zeros_like(self.boundary)
        return self.crossing_bytes * link.busy_seconds_per_byte

    def input_seconds(self, before: Group | None, group: Group) -> Floats:
        """Of a stage on ``group``, by its begin: seconds between two inputs that its link can keep up; 0 where transfers
        block, as :meth:`stage_seconds` counts them then."""
        if self.schedule.blocking:
            return np.zeros_like(self.boundary)
        return self.transfer(before, group)

    def stage_bytes(self, stage: int) -> tuple[Floats, Floats]:
        """``(ends, begins)`` of the bytes that a stage needs, by its place in the pipeline."""
        kept = min(self.schedule.ahead(stage, self.stages), self.num_micro_batches)
        ends = self.state + kept * (self.activations + self.boundary)
        begins = self.state + kept * (self.activations - self.boundary)
        return ends, begins

    def layers_of(self, bounds: Sequence[int], stage: int) -> str:
        """The names of a stage's layers, in short."""
        own = [layer.name for layer in self.profile.layers[bounds[stage] : bounds[stage + 1]]]
        return own[0] if len(own) == 1 else f"{own[0]} … {own[-1]}"


def check_stages(profile: Profile, stages: int) -> None:
    """Refuse a number of stages that no cut can have.

    Raises:
        PartitionError: no stage, or more than there are layers.
    """
    n = len(profile.layers)
    if stages < 1:
        raise PartitionError(f"stages must be at least 1, got {stages}")
    if stages > n:
        names = ", ".join(layer.name for layer in profile.layers)
        raise PartitionError(
            f"{stages} stages, but only {n} layers to put into them ({names}); at most {n} stages are possible"
        )


def device_groups(profile: Profile, stages: int) -> tuple[Group, ...]:
    """The profile's devices in equal groups, one a stage, in their order.

    Raises:
        PartitionError: their number is no multiple of the stages.
    """
    devices = profile.devices
    if not devices:
        return tuple(Group((stage,)) for stage in range(stages))
    if len(devices) % stages:
        raise PartitionError(
            f"the profile lists {len(devices)} devices ({', '.join(d.name for d in devices)}) for {stages} stages; allowed are "
            f"{stages}, a multiple of it, or none"
        )
    size = len(devices) // stages
    groups = []
    for stage in range(stages):
        members = tuple(range(stage * size, (stage + 1) * size))
        own = [devices[m] for m in members]
        limits = [d.memory_bytes for d in own if d.memory_bytes is not None]
        groups.append(Group(members, min(d.relative_speed for d in own), min(limits, default=None), own[0].name))
    return tuple(groups)


def _prefix(values: Sequence[float]) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.array(values, dtype=np.float64))])
