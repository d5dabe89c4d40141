"""Cut for virtual stages: each device runs several chunks in turn (Megatron's interleaved schedule).

Chunk ``c`` belongs to device ``c mod stages``, so a device's time is the sum of its chunks. Dynamic programming over
(chunk, layers used) with the loads of all devices; of two states with the same place one may be dropped where no device
has more load than in the other.
"""

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np

from recparallel.errors import PartitionError
from recparallel.partitioning.chain import cut_chain
from recparallel.partitioning.costs import check_stages, device_groups
from recparallel.partitioning.step_costs import predict_step
from recparallel.plan import Partition, Profile

MOST_STATES = 10_000
"""States after which the search stops; the best cut found so far is then not proved to be the best of all."""

_Loads = tuple[float, ...]
_State = tuple[_Loads, tuple[int, ...]]


def minimize_interleaved(profile: Profile, stages: int, *, virtual: int) -> Partition:
    """The cut into ``stages · virtual`` chunks whose most loaded device has the least to do.

    Transfers are not counted: they run beside the computation in this schedule. The step is predicted where the profile
    says how many micro-batches it has, and these are a multiple of the stages.

    Raises:
        PartitionError: fewer layers than chunks, a device list of another length, or a memory limit (what a device keeps
            in this schedule is not modelled).
    """
    if virtual < 1:
        raise PartitionError(f"virtual must be at least 1, got {virtual}")
    check_stages(profile, stages * virtual)
    groups = device_groups(profile, stages)
    if any(group.memory_bytes is not None for group in groups):
        raise PartitionError(
            "memory limits are not counted for virtual stages; remove memory_bytes or use one chunk a stage"
        )
    chunks = stages * virtual
    prefix = [0.0]
    for layer in profile.layers:
        prefix.append(prefix[-1] + layer.seconds)
    speeds = [group.speed for group in groups]
    bounds, proved = _search(prefix, speeds, chunks)
    loads = _loads(prefix, speeds, bounds)
    cut = Partition(
        bounds=tuple(bounds), method="interleaved", virtual=virtual, stage_seconds=tuple(loads), optimal=proved
    )
    number = profile.num_micro_batches
    if number is None or number % stages:  # Megatron runs the schedule with multiples of the stages alone
        return cut
    return cut.model_copy(update={"step_seconds": predict_step(profile, cut)})


def _search(prefix: Sequence[float], speeds: Sequence[float], chunks: int) -> tuple[list[int], bool]:
    n, stages = len(prefix) - 1, len(speeds)
    best = _improved(prefix, speeds, _even_chunks(prefix, chunks))
    limit = max(_loads(prefix, speeds, best))
    if limit <= prefix[-1] / sum(speeds):
        return best, True  # as even as can be
    extended = 0
    states: dict[int, list[_State]] = {0: [((0.0,) * stages, (0,))]}
    for chunk in range(chunks):
        device = chunk % stages
        last = chunk == chunks - 1
        reached: dict[int, list[_State]] = {}
        for begin, own in states.items():
            extended += len(own)
            if extended > MOST_STATES:
                return best, False
            for loads, bounds in own:
                for end in range(begin + 1, n - (chunks - chunk - 1) + 1):
                    load = loads[device] + (prefix[end] - prefix[begin]) / speeds[device]
                    if load >= limit:
                        break
                    if last and end < n:
                        continue
                    fresh = (*loads[:device], load, *loads[device + 1 :])
                    reached.setdefault(end, []).append((fresh, (*bounds, end)))
        states = {end: _without_dominated(candidates) for end, candidates in reached.items()}
    for loads, bounds in states.get(n, []):
        if max(loads) < limit:
            best, limit = list(bounds), max(loads)
    return best, True


def _without_dominated(candidates: list[_State]) -> list[_State]:
    """Those of which no other has as little or less on every device."""
    kept: list[_State] = []
    loads_kept = np.empty((len(candidates), len(candidates[0][0])))
    for loads, bounds in sorted(candidates, key=lambda state: (max(state[0]), state)):
        if not (loads_kept[: len(kept)] <= loads).all(axis=1).any():
            loads_kept[len(kept)] = loads
            kept.append((loads, bounds))
    return kept


def _improved(prefix: Sequence[float], speeds: Sequence[float], bounds: list[int]) -> list[int]:
    """Move one layer's worth from chunk to chunk, all cuts between them shifted by one, as long as loads become more even."""
    chunks = len(bounds) - 1
    loads = sorted(_loads(prefix, speeds, bounds), reverse=True)
    while True:
        for (a, b), step in product(combinations(range(chunks), 2), (-1, 1)):
            moved = [bound + step if a < c <= b else bound for c, bound in enumerate(bounds)]
            if any(x >= y for x, y in zip(moved, moved[1:])):
                continue
            found = sorted(_loads(prefix, speeds, moved), reverse=True)
            if found < loads:
                bounds, loads = moved, found
                break
        else:
            return bounds


def _even_chunks(prefix: Sequence[float], chunks: int) -> list[int]:
    """A first solution: all chunks as even as can be, whatever their devices."""
    work = np.array(prefix)
    bounds = cut_chain([(work, work)] * chunks, len(prefix) - 1)
    assert bounds is not None
    return bounds


def _loads(prefix: Sequence[float], speeds: Sequence[float], bounds: Sequence[int]) -> list[float]:
    loads = [0.0] * len(speeds)
    for chunk, (a, b) in enumerate(zip(bounds, bounds[1:])):
        device = chunk % len(speeds)
        loads[device] += (prefix[b] - prefix[a]) / speeds[device]
    return loads
