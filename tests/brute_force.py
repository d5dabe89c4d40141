"""Random profiles, and every cut of them, costed without the solvers' prefix sums: the reference of all solver tests."""

import math
from itertools import combinations, permutations

from hypothesis import strategies as st

from recparallel.plan import Device, LayerCost, LinkCost, Profile

small = st.integers(0, 9)
rates = st.sampled_from([1.0, 2.0, 4.0])


@st.composite
def layer_costs(draw, number):
    return LayerCost(
        name=f"layer {number}",
        forward_seconds=draw(small),
        backward_seconds=draw(small),
        update_seconds=draw(st.sampled_from([0, 0, 4])),
        parameter_bytes=draw(small),
        optimizer_bytes=draw(small),
        activation_bytes=draw(small),
        boundary_bytes=draw(small),
    )


@st.composite
def profiles(draw, *, most_layers=7, most_stages=4, limited=None):
    """A profile and a number of stages. Everything is a small integer or a power of two, so that sums are exact."""
    stages = draw(st.integers(1, most_stages))
    n = draw(st.integers(stages, max(stages, most_layers)))
    layers = [draw(layer_costs(i)) for i in range(n)]
    if draw(st.booleans()) and n > 1:
        tied = {0, n - 1}
        layers = [
            layer.model_copy(
                update={
                    "tie": "table",
                    "parameter_bytes": draw(st.sampled_from([8, 8, 2])),
                    "touched_share": draw(st.sampled_from([1.0, 0.25, 0.0])),
                }
            )
            if i in tied
            else layer
            for i, layer in enumerate(layers)
        ]
    limited = draw(st.booleans()) if limited is None else limited
    memory = st.integers(20, 150) if limited else st.none()
    devices = tuple(
        Device(name=f"device {i}", relative_speed=draw(st.sampled_from([0.5, 1.0, 2.0])), memory_bytes=draw(memory))
        for i in range(stages)
    )
    beside = st.sampled_from([0.0, 0.25])
    generic = LinkCost(
        bytes_per_second=draw(rates),
        latency_seconds=draw(st.sampled_from([0.0, 0.5])),
        busy_seconds_per_byte=draw(beside),
    )
    links = [generic] if draw(st.integers(0, 3)) else []
    own = [pair for pair in combinations(range(stages), 2) if draw(st.integers(0, 2)) == 0]
    links += [LinkCost(bytes_per_second=draw(rates), busy_seconds_per_byte=draw(beside), between=pair) for pair in own]
    return (
        Profile(
            layers=tuple(layers),
            micro_batch=1,
            sequence_length=1,
            devices=devices if draw(st.booleans()) or limited else (),
            links=tuple(links) if draw(st.booleans()) else (),
            num_micro_batches=draw(st.integers(1, 5)),
            schedule=draw(st.sampled_from(["1f1b", "eager_1f1b"])),
        ),
        stages,
    )


def cuts(n, stages):
    """Every cut of ``n`` layers into non-empty stages."""
    return ((0, *inner, n) for inner in combinations(range(1, n), stages - 1))


def orders(stages):
    return permutations(range(stages))


def stage_seconds(profile, bounds, order):
    """Of each stage: its layers on its device, and two tensors over each boundary; in the eager schedule, where these cross
    beside the computation, what they take from it, and at least one tensor over the boundary before it."""
    stages = len(bounds) - 1
    seconds = []
    for stage, (a, b) in enumerate(zip(bounds, bounds[1:])):
        total = math.fsum(layer.seconds for layer in profile.layers[a:b]) / speed_of(profile, order[stage])
        if profile.schedule == "eager_1f1b":
            for other, cut in ((stage - 1, a), (stage + 1, b)):
                if 0 <= other < stages:
                    total += 2 * busy(profile, order[stage], order[other], cut)
            if stage:
                total = max(total, crossing(profile, order[stage - 1], order[stage], a))
            seconds.append(total)
            continue
        if stage:
            total += 2 * crossing(profile, order[stage - 1], order[stage], a)
        if stage + 1 < stages:
            total += 2 * crossing(profile, order[stage], order[stage + 1], b)
        seconds.append(total)
    return seconds


def speed_of(profile, device):
    return profile.devices[device].relative_speed if profile.devices else 1.0


def crossing(profile, a, b, cut):
    link = profile.link(a, b)
    return (
        0.0 if link is None else link.latency_seconds + profile.layers[cut - 1].boundary_bytes / link.bytes_per_second
    )


def busy(profile, own, other, cut):
    link = profile.link(own, other)
    if link is None:
        return 0.0
    return link.busy_seconds_per_byte * profile.layers[cut - 1].boundary_bytes


def fits(profile, bounds, order):
    stages = len(bounds) - 1
    for stage, (a, b) in enumerate(zip(bounds, bounds[1:])):
        limit = profile.devices[order[stage]].memory_bytes if profile.devices else None
        if limit is not None and bytes_needed(profile, stage, stages, a, b) > limit:
            return False
    return True


def bytes_needed(profile, stage, stages, a, b):
    ahead = stages - stage if profile.schedule == "1f1b" else 2 * (stages - stage) - 1
    kept = min(ahead, profile.num_micro_batches or stages)
    needed = sum(
        2 * layer.parameter_bytes + layer.optimizer_bytes  # gradients as large as the weights
        for layer in profile.layers[a:b]
    )
    edges = (profile.layers[a - 1].boundary_bytes if a else 0) + (
        profile.layers[b - 1].boundary_bytes if b < len(profile.layers) else 0
    )
    return needed + kept * (sum(layer.activation_bytes for layer in profile.layers[a:b]) + edges)
