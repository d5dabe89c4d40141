"""Cut so that the slowest stage is as fast as a contiguous cut allows, exactly, on devices in their given order."""

from collections.abc import Sequence

from recparallel.partitioning.chain import cut_chain
from recparallel.partitioning.costs import Costs, Group
from recparallel.partitioning.memory import too_little_memory
from recparallel.plan import Partition, Profile


def minimize_bottleneck(profile: Profile, stages: int) -> Partition:
    """Cut ``profile.layers`` into ``stages`` non-empty stages with the smallest possible slowest stage.

    1. A stage takes what its layers take on its device, and the transfers it waits for; it fits into its device's memory.
    2. The best cut of the first ``j`` layers into ``s`` stages follows from those into ``s - 1``
       (:mod:`~recparallel.partitioning.chain`).
    3. The cut is read off backwards, from the last layer.

    Which of several equal cuts is taken depends on the profile alone, so every rank with the same profile finds the
    same cut.

    Raises:
        PartitionError: fewer layers than stages, a device list of another length, or a memory limit that nothing fits
            in.

    Example:
        >>> from recparallel.plan import LayerCost
        >>> layers = [LayerCost(name=str(i), forward_seconds=1, backward_seconds=t) for i, t in enumerate([0, 0, 0, 2])]
        >>> minimize_bottleneck(Profile(layers=layers, micro_batch=1, sequence_length=1), 2).bounds
        (0, 3, 4)
    """
    costs = Costs(profile, stages)
    return cut_in_order(costs, costs.groups, method="profile")


def cut_in_order(costs: Costs, order: Sequence[Group], *, method: str) -> Partition:
    """The best cut for devices in this order."""
    tables = [costs.stage_seconds(group, *neighbours(order, stage)) for stage, group in enumerate(order)]
    limits = [group.memory_bytes for group in order]
    needs = [costs.stage_bytes(stage) for stage in range(len(order))] if any(m is not None for m in limits) else ()
    least = [costs.input_seconds(before, group) for before, group in zip((None, *order), order)]
    bounds = cut_chain(tables, costs.num_layers, least=least, needs=needs, limits=limits)
    if bounds is None:
        raise too_little_memory(costs, order)
    return Partition(bounds=tuple(bounds), method=method, stage_seconds=stage_seconds(costs, order, bounds))


def stage_seconds(costs: Costs, order: Sequence[Group], bounds: Sequence[int]) -> tuple[float, ...]:
    """``Partition.stage_seconds`` of a cut for devices in this order."""
    found = []
    for stage, (a, b) in enumerate(zip(bounds, bounds[1:])):
        before, behind = neighbours(order, stage)
        ends, begins = costs.stage_seconds(order[stage], before, behind)
        found.append(max(float(ends[b] - begins[a]), float(costs.input_seconds(before, order[stage])[a]), 0.0))
    return tuple(found)


def neighbours(order: Sequence[Group], stage: int) -> tuple[Group | None, Group | None]:
    """The groups before and behind a stage; None at the ends."""
    before = order[stage - 1] if stage else None
    behind = order[stage + 1] if stage + 1 < len(order) else None
    return before, behind
