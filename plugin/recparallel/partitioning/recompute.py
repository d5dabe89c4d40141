"""Stages that do not fit compute some of their layers a second time in the backward pass, instead of keeping their activations.

A layer that does keeps its input alone, and its forward is in the backward pass once more (Chen et al., "Training deep nets with
sublinear memory cost", arXiv:1604.06174). One such layer at a time has all its activations back.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod

from recparallel.errors import DoesNotFitError
from recparallel.partitioning.bottleneck import stage_seconds
from recparallel.partitioning.costs import Costs
from recparallel.partitioning.step_costs import predict_step
from recparallel.plan import LayerCost, Partition, Profile

Solver = Callable[[Profile, int], Partition]

MOST_CHOICES = 20_000
"""Choices of layers that are weighed for one stage; layers that cost the same are not told apart."""


def fit_by_recomputing(profile: Profile, stages: int, solve: Solver) -> Partition:
    """The cut that ``solve`` makes; where nothing fits, one in which stages recompute as few layers as fit.

    1. ``solve`` cuts the profile as it is. If that fits, nothing is recomputed.
    2. Otherwise it cuts a profile in which every layer recomputes.
    3. In each stage of that cut, of all choices of layers that make the stage fit the one is taken that takes the least time. All
       of them are weighed, up to :data:`MOST_CHOICES`; beyond, layers are taken by the bytes that they save for a second. The cut
       stays.

    Raises:
        PartitionError: as ``solve``; a :class:`~recparallel.errors.DoesNotFitError` tells what is lacking both ways.
    """
    try:
        return solve(profile, stages)
    except DoesNotFitError as error:
        lacking = error
    everything = recomputing(profile, range(len(profile.layers)))
    try:
        cut = solve(_with_room_for_one(everything, profile), stages)
    except DoesNotFitError as error:
        raise DoesNotFitError(f"{lacking}. Recomputing every layer is not enough: {error}") from error
    layers = tuple(layer for stage in range(stages) for layer in _fewest(profile, cut, stage))
    final = recomputing(profile, layers)
    costs = Costs(final, stages)
    order = [costs.groups[d] for d in cut.device_order] or list(costs.groups)
    return cut.model_copy(
        update={
            "recompute": layers,
            "stage_seconds": stage_seconds(costs, order, cut.bounds),
            "step_seconds": None if profile.num_micro_batches is None else predict_step(final, cut),
            "optimal": False,
        }
    )


def recomputing(profile: Profile, layers: Sequence[int] | range) -> Profile:
    """The costs of a pipeline in which these layers recompute."""
    chosen = set(layers)
    changed = [
        _recomputed(layer, profile.layers[number - 1].boundary_bytes if number else 0) if number in chosen else layer
        for number, layer in enumerate(profile.layers)
    ]
    return profile.model_copy(update={"layers": tuple(changed), "shapes": ()})


def _recomputed(layer: LayerCost, input_bytes: int) -> LayerCost:
    return layer.model_copy(
        update={
            "backward_seconds": layer.backward_seconds + layer.forward_seconds,
            "activation_bytes": min(input_bytes, layer.activation_bytes),
        }
    )


def _with_room_for_one(recomputed: Profile, profile: Profile) -> Profile:
    """With devices that have room for the activations of the largest layer beside."""
    largest = max(layer.activation_bytes for layer in profile.layers)
    devices = [
        device
        if device.memory_bytes is None
        else device.model_copy(update={"memory_bytes": max(0, device.memory_bytes - largest)})
        for device in profile.devices
    ]
    return recomputed.model_copy(update={"devices": tuple(devices)})


def _fewest(profile: Profile, cut: Partition, stage: int) -> tuple[int, ...]:
    """Numbers of the layers that a stage recomputes."""
    costs = Costs(profile, cut.num_stages)
    limit = costs.groups[cut.device_order[stage] if cut.device_order else stage].memory_bytes
    ends, begins = costs.stage_bytes(stage)
    a, b = cut.bounds[stage], cut.bounds[stage + 1]
    excess = 0.0 if limit is None else float(ends[b] - begins[a]) - limit
    if excess <= 0:
        return ()
    kept = min(costs.schedule.ahead(stage, cut.num_stages), costs.num_micro_batches)
    without = recomputing(profile, range(a, b)).layers
    saved = {n: kept * (profile.layers[n].activation_bytes - without[n].activation_bytes) for n in range(a, b)}

    def seconds(chosen: Sequence[int]) -> float:
        return sum(profile.layers[n].forward_seconds for n in chosen)

    def fits(chosen: Sequence[int]) -> bool:
        back = max((profile.layers[n].activation_bytes for n in chosen), default=0)
        return sum(saved[n] for n in chosen) >= excess + back

    useful = [n for n in range(a, b) if saved[n] > 0]
    choices = [chosen for chosen in _choices(profile, useful, saved) if fits(chosen)]
    return min(choices, key=lambda chosen: (seconds(chosen), len(chosen), chosen))


def _choices(profile: Profile, useful: Sequence[int], saved: dict[int, int]) -> Iterator[tuple[int, ...]]:
    """Choices of layers, of those that cost the same always the first ones; where there are too many, growing ones alone."""
    kinds: dict[tuple[float, int, int], list[int]] = {}
    for n in useful:
        layer = profile.layers[n]
        kinds.setdefault((layer.forward_seconds, layer.activation_bytes, saved[n]), []).append(n)
    if prod(len(members) + 1 for members in kinds.values()) <= MOST_CHOICES:
        for counts in product(*(range(len(members) + 1) for members in kinds.values())):
            yield tuple(sorted(n for members, count in zip(kinds.values(), counts) for n in members[:count]))
        return
    by_value = sorted(useful, key=lambda n: (profile.layers[n].forward_seconds / saved[n], n))
    for count in range(len(by_value) + 1):
        yield tuple(sorted(by_value[:count]))
