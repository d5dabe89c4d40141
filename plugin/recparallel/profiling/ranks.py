"""Profile a model with all ranks of a launch: each measures its share of the layers, and how fast it is itself."""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from recparallel.errors import PartitionError
from recparallel.models.layer import Layer
from recparallel.plan import Device, LayerCost, Profile
from recparallel.profiling.device import describe_device, free_bytes
from recparallel.profiling.interference import measure_interference
from recparallel.profiling.layers import (
    Effort,
    LossFunction,
    Progress,
    measure_layers,
    profile_layers,
    representatives,
    with_names,
)
from recparallel.profiling.links import measure_links
from recparallel.profiling.passes import LayerPasses
from recparallel.profiling.sums import PLAIN_SUMS, GradientSums

_ALIKE = 0.15
"""Ranks whose speeds differ by less count as equal: two measurements of one device differ by about as much."""


@contextmanager
def joined(device: torch.device | str = "cpu") -> Iterator[int]:
    """The default group of a launch, where this is one and has none yet; gives this process's rank, 0 where it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield dist.get_rank() if dist.is_initialized() else 0
        return
    dist.init_process_group("gloo" if torch.device(device).type == "cpu" else "nccl")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def profile_here(
    layers: Sequence[Layer],
    loss_fn: LossFunction,
    sample: tuple[Any, ...],
    *,
    effort: Effort,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sums: GradientSums = PLAIN_SUMS,
    progress: Progress = lambda layers: layers,
) -> Profile:
    """The profile by all ranks of the launch, with their devices and links; by this process where it is alone, whose device
    then speaks for all."""
    if dist.is_initialized():
        measured = profile_on_ranks(layers, loss_fn, sample, effort=effort, device=device, dtype=dtype, sums=sums)
        return with_free_memory(measured, device)
    return profile_layers(
        layers,
        loss_fn,
        sample,
        repeats=effort.repeats,
        warmup=effort.warmup,
        least_seconds=effort.least_seconds,
        device=device,
        dtype=dtype,
        sums=sums,
        progress=progress,
    )


@dataclass(frozen=True)
class _Share:
    """What one rank found: costs by layer, and itself."""

    costs: dict[int, LayerCost]
    name: str


def profile_on_ranks(
    layers: Sequence[Layer],
    loss_fn: LossFunction,
    sample: tuple[Any, ...],
    *,
    effort: Effort,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sums: GradientSums = PLAIN_SUMS,
    say: Callable[[str], None] = lambda sentence: None,
) -> Profile:
    """Collective over the default group; every rank gets the same profile.

    1. Every rank measures one layer that all measure, the one with the most layers like it: this tells its speed. The
       fastest rank is the device of relative speed 1.
    2. The other layers are divided among the ranks, and what a rank measured is scaled by its speed. On CPUs, ranks that are
       done go on with the layer of all until all are: cores of one machine share caches and memory, in a training too.
    3. Links are measured pair by pair, and what their use takes from the computation beside it.

    Raises:
        PartitionError: on every rank, if measuring fails on one; the message names it.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    chosen = representatives(layers)
    common = max(chosen, key=lambda i: (_copies(layers, i), -i))
    # The ends first, as head and table cost the most: they go to different ranks.
    others = sorted((i for i in chosen if i != common), key=lambda i: (min(i, len(layers) - 1 - i), -i))
    wanted = {common, *others[rank::world]}
    alike = "" if len(chosen) == len(layers) else f" of {len(layers)}, the others being like one of them,"
    say(f"profiling {len(chosen)} layers{alike} on {world} ranks")
    answer: _Share | str
    common_passes: LayerPasses | None = None
    try:
        measured = measure_layers(
            layers,
            loss_fn,
            sample,
            wanted=wanted,
            effort=effort,
            keep=common if torch.device(device).type == "cpu" else None,
            device=device,
            dtype=dtype,
            sums=sums,
        )
        answer, common_passes = _Share(measured.costs, describe_device(device)), measured.kept
    except Exception as error:
        answer = f"rank {rank}: {error!r}"
    if (failure := _run_until_all_are_done(common_passes)) is not None:
        answer = f"rank {rank}: {failure!r}"
    common_passes = None
    answers: list[Any] = [None] * world
    dist.all_gather_object(answers, answer)
    if failed := [a for a in answers if isinstance(a, str)]:
        raise PartitionError(f"profiling the layers failed on {'; '.join(failed)}")
    shares: list[_Share] = answers
    speeds = relative_speeds([share.costs[common].seconds for share in shares])
    links = measure_links(device)
    slowest = min((link.bytes_per_second for link in links), default=0.0)
    busy = _median_over_ranks(measure_interference(device, dtype, slowest))
    return Profile(
        layers=with_names(layers, _merged(shares, speeds)),
        micro_batch=sample[0].shape[0],
        sequence_length=sample[0].shape[1],
        dtype=str(dtype).removeprefix("torch."),
        devices=tuple(
            Device(name=f"rank {r} ({share.name})", relative_speed=speed)
            for r, (share, speed) in enumerate(zip(shares, speeds))
        ),
        links=tuple(link.model_copy(update={"busy_seconds_per_byte": busy}) for link in links),
    )


def with_free_memory(profile: Profile, device: torch.device | str) -> Profile:
    """Collective: the profile with what is free on every rank's device now; a CPU has no limit.

    Devices with about as much free count as equal, with the smallest of their kind.
    """
    free: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(free, free_bytes(device))
    known = [value for value in free if value is not None]
    limits = [None if own is None else min(v for v in known if v >= (1 - _ALIKE) * own) for own in free]
    return profile.model_copy(
        update={
            "devices": tuple(
                device.model_copy(update={"memory_bytes": limit}) for device, limit in zip(profile.devices, limits)
            )
        }
    )


def relative_speeds(seconds: Sequence[float]) -> list[float]:
    """Speeds from the seconds that each rank took for the same work, the fastest being 1; those that are alike, equal."""
    if any(not value > 0 for value in seconds):
        raise PartitionError(f"the common layer took {list(seconds)} s on the ranks; times must be above 0")
    speeds = [min(seconds) / value for value in seconds]
    kinds: list[list[int]] = []
    for rank in sorted(range(len(speeds)), key=lambda r: -speeds[r]):
        if kinds and speeds[rank] >= (1 - _ALIKE) * speeds[kinds[-1][0]]:
            kinds[-1].append(rank)
        else:
            kinds.append([rank])
    means = {r: statistics.fmean(speeds[k] for k in kind) for kind in kinds for r in kind}
    fastest = max(means.values())
    return [means[r] / fastest for r in range(len(speeds))]


def _run_until_all_are_done(passes: LayerPasses | None) -> Exception | None:
    """Wait for all ranks; make passes meanwhile, where there are some. What fails in them is handed back: the others wait."""
    everybody = dist.barrier(async_op=True)
    failure: Exception | None = None
    if passes is not None and everybody is not None:
        with torch.random.fork_rng(), torch.enable_grad():
            while failure is None and not everybody.is_completed():
                try:
                    passes.once()
                except Exception as error:
                    failure = error
    if everybody is not None:
        everybody.wait()
    return failure


def _merged(shares: Sequence[_Share], speeds: Sequence[float]) -> dict[int, LayerCost]:
    """Of each layer the median over the ranks that measured it, in seconds of the fastest device."""
    merged = {}
    for index in sorted({i for share in shares for i in share.costs}):
        found = [(share.costs[index], speed) for share, speed in zip(shares, speeds) if index in share.costs]
        seconds = {
            name: statistics.median(getattr(cost, name) * speed for cost, speed in found)
            for name in ("forward_seconds", "backward_seconds", "update_seconds")
        }
        merged[index] = found[0][0].model_copy(update=seconds)
    return merged


def _median_over_ranks(value: float) -> float:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return float(statistics.median(values))


def _copies(layers: Sequence[Layer], index: int) -> int:
    kind = layers[index].alike
    return 1 if kind is None else sum(layer.alike == kind for layer in layers)
