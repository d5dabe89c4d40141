"""The profile that a pipeline is cut by: read from a file, from the cache, or measured by all ranks."""

import logging
import socket
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist

from recparallel.compression.wire import crossing_bytes
from recparallel.config import PartitionConfig, WireFormatName
from recparallel.engines.packed_rows import Sample
from recparallel.errors import PartitionError, RecParallelError
from recparallel.models.packing import Packing
from recparallel.models.recommender import Recommender
from recparallel.plan import Device, LayerCost, PipelineScheduleName, Profile
from recparallel.profiling import cache
from recparallel.profiling.device import describe_device
from recparallel.profiling.files import read_profile
from recparallel.profiling.layers import Effort
from recparallel.profiling.ranks import profile_on_ranks, with_free_memory
from recparallel.profiling.sums import PLAIN_SUMS, GradientSums

logger = logging.getLogger(__name__)


_LEAST_SECONDS_PER_REPEAT = 0.1
_GIB = 2**30


def obtain_profile(
    recommender: Recommender,
    config: PartitionConfig,
    *,
    given: Profile | None,
    sample: Sample | None,
    device: str,
    dtype: torch.dtype,
    num_micro_batches: int | None,
    schedule: PipelineScheduleName,
    wire: WireFormatName = "same",
    optimizer_shares: int = 1,
    sums: GradientSums = PLAIN_SUMS,
) -> Profile:
    """Collective over the default group; every rank gets the same profile.

    Args:
        recommender: the model.
        config: where a profile comes from, and how hard to measure.
        given: take this one.
        sample: one micro-batch; needed for measuring.
        device: of this rank.
        dtype: of the weights.
        num_micro_batches: of a step, in each replica.
        schedule: that the pipeline will run.
        wire: what tensors are that cross boundaries.
        optimizer_shares: replicas among which the optimizer's state and work are divided (ZeRO-1).
        sums: how the training will add up gradients.

    Raises:
        PartitionError: on every rank, if the profile cannot be read, is another model's, or measuring fails.
    """
    if given is not None:
        profile = given
    elif config.profile is not None:
        path = config.profile
        profile = _from_rank_0(lambda: _of_this_model(read_profile(path), recommender, path, sample))
    else:
        profile = _cached(recommender, config, _sample_of_every_rank(sample, config), device, dtype, sums)
    if len(profile.devices) not in (0, dist.get_world_size()):
        raise PartitionError(
            f"the profile lists {len(profile.devices)} devices, the launch has {dist.get_world_size()} ranks; list one a rank, "
            "or none"
        )
    profile = profile.model_copy(update={"schedule": schedule, "layers": _crossing_as(profile.layers, wire, dtype)})
    return _limited(profile, config, num_micro_batches, optimizer_shares, sums)


def _of_this_model(profile: Profile, recommender: Recommender, path: str, sample: Sample | None) -> Profile:
    names, own = [layer.name for layer in profile.layers], [layer.name for layer in recommender.layers]
    if names != own:
        place, theirs, ours = next(
            (i, a, b) for i, (a, b) in enumerate(zip_longest(names, own, fillvalue="nothing")) if a != b
        )
        raise PartitionError(
            f"profile {path} is of another model: it has {len(names)} layers, this model {len(own)}; the first that differs "
            f"is number {place}: {theirs} there, {ours} here"
        )
    if sample is None:
        return profile
    return profile.at(*sample[0].shape)


def _cached(
    recommender: Recommender,
    config: PartitionConfig,
    sample: Sample,
    device: str,
    dtype: torch.dtype,
    sums: GradientSums,
) -> Profile:
    own = f"{socket.gethostname()}: {describe_device(device)}"
    devices: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(devices, own)
    measured = cache.conditions(
        recommender.layers, recommender.loss_fn, shape=sample[0].shape, dtype=dtype, devices=devices
    )
    packed = Packing.of(sample) is not None
    measured |= {"effort": [config.repeats, config.warmup], "sums": list(sums), "packed": packed}
    if config.cache and (found := _from_rank_0(lambda: cache.load(measured))) is not None:
        return with_free_memory(found, device)
    profile = profile_on_ranks(
        recommender.layers,
        recommender.loss_fn,
        sample,
        effort=Effort(config.repeats, config.warmup, _LEAST_SECONDS_PER_REPEAT * config.repeats),
        device=device,
        dtype=dtype,
        sums=sums,
        say=print if dist.get_rank() == 0 else lambda sentence: None,
    )
    if config.cache and dist.get_rank() == 0:
        try:
            cache.save(measured, profile)
        except OSError as error:  # a read-only home: measuring again costs seconds, stopping costs the run
            logger.warning("the profile is not kept: %s", error)
    return with_free_memory(profile, device)


def _sample_of_every_rank(sample: Sample | None, config: PartitionConfig) -> Sample:
    """The sample; refused on every rank where one has none, as all of them measure."""
    lacking: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lacking, sample is None)
    if sample is None or any(lacking):
        raise PartitionError(
            f"partition method {config.method!r} times the layers with a real micro-batch, and rank {lacking.index(True)} has "
            "none: pass training_data (or sample, or a profile) on every rank"
        )
    return sample


def _crossing_as(layers: Sequence[LayerCost], wire: WireFormatName, dtype: torch.dtype) -> tuple[LayerCost, ...]:
    """The layers, with the bytes that cross behind each as the wire format makes them; as they are, they stay."""
    if wire == "same":
        return tuple(layers)
    sizes = [crossing_bytes(wire, layer.boundary_bytes // dtype.itemsize, dtype) for layer in layers]
    return tuple(layer.model_copy(update={"wire_bytes": size}) for layer, size in zip(layers, sizes))


def _limited(
    profile: Profile,
    config: PartitionConfig,
    num_micro_batches: int | None,
    optimizer_shares: int,
    sums: GradientSums,
) -> Profile:
    changes: dict[str, Any] = {} if num_micro_batches is None else {"num_micro_batches": num_micro_batches}
    if optimizer_shares > 1:
        changes["layers"] = tuple(
            layer
            if layer.kind in sums.lazy  # whole on every replica
            else layer.model_copy(
                update={
                    "optimizer_bytes": -(-layer.optimizer_bytes // optimizer_shares),
                    "update_seconds": layer.update_seconds / optimizer_shares,
                }
            )
            for layer in profile.layers
        )
    if config.memory_gib is not None:
        limit = int(config.memory_gib * _GIB)
        devices = profile.devices or tuple(Device(name=f"rank {r}") for r in range(dist.get_world_size()))
        changes["devices"] = tuple(device.model_copy(update={"memory_bytes": limit}) for device in devices)
    return profile.model_copy(update=changes)


def _from_rank_0(make: Callable[[], Profile | None]) -> Any:
    """What rank 0 makes, or its error, on every rank: files need not exist elsewhere."""
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            made = make()
            answer = [None if made is None else made.model_dump_json()]
        except RecParallelError as error:
            answer = [error]
        except Exception as error:  # the others wait for an answer
            answer = [PartitionError(f"reading the profile failed on rank 0: {error!r}")]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return None if answer[0] is None else Profile.model_validate_json(answer[0])
