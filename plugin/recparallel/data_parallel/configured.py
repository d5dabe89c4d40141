"""The gradient hook that the config names."""

import functools
import inspect
from typing import Any

import torch.distributed as dist

from recparallel import registry
from recparallel.collectives.choice import check_aggregation
from recparallel.collectives.hierarchical import Hierarchical, NodeGroups, node_groups, this_node
from recparallel.compression import Codec
from recparallel.compression.error_feedback import ErrorFeedback
from recparallel.compression.memory import Memory
from recparallel.compression.momentum_correction import MomentumCorrection
from recparallel.config import CompressionConfig
from recparallel.data_parallel.hook import BoundHook
from recparallel.data_parallel.synchronous import CompressedAverage, CompressedHook, average_compressed
from recparallel.errors import ConfigError


def configured_hook(compression: CompressionConfig | None, group: dist.ProcessGroup) -> BoundHook | None:
    """The hook for ``compression``, bound to ``group``; None without one.

    The registry holds two kinds of names: a :class:`~recparallel.compression.Codec`, and a function that makes a hook
    of its own.

    Raises:
        ConfigError: the codec does not take these options, or other ranks were given others.
    """
    _check_agreement(compression, group)
    return None if compression is None else _make(compression, group)


def _check_agreement(compression: CompressionConfig | None, group: dist.ProcessGroup) -> None:
    """Raises:
    ConfigError: on every rank, if ranks of ``group`` were given different settings: their messages would not fit together.
    """
    own = None if compression is None else compression.model_dump_json()
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, own, group=group)
    if len(set(everyone)) > 1:
        ranks = dist.get_process_group_ranks(group)
        given = "; ".join(f"rank {rank}: {each or 'none'}" for rank, each in zip(ranks, everyone))
        raise ConfigError(f"recparallel.compression differs between ranks that average gradients together: {given}")


def check_codec(compression: CompressionConfig | None) -> None:
    """Try the options, so that a wrong one is refused before any process group exists.

    Raises:
        ConfigError: says which options there are.
    """
    if compression is not None:
        _make(compression, None)


def _make(compression: CompressionConfig, group: dist.ProcessGroup | None) -> BoundHook:
    made: Any = registry.codecs.load(compression.codec)
    if isinstance(made, type):
        codec: Codec = _called(made, compression, compression.options)
        check_aggregation(codec, compression.aggregation)
        state = CompressedAverage(
            codec,
            group,
            memory=_memory(compression, 1 if group is None else dist.get_world_size(group)),
            aggregation=compression.aggregation,
            nodes=_nodes(compression, group),
            warm_up_steps=compression.warm_up_steps,
        )
        return CompressedHook(compression.codec, average_compressed, state)
    options, takes = compression.options, inspect.signature(made).parameters
    for key in CompressionConfig.model_fields:
        if key in takes:
            options[key] = getattr(compression, key)
        elif key not in ("codec", "bucket_size") and key in compression.model_fields_set:
            raise ConfigError(
                f"recparallel.compression.{key} is {getattr(compression, key)!r}, but codec {compression.codec!r} "
                "exchanges gradients in its own way, which has no such thing; remove the key"
            )
    hook: BoundHook = _called(functools.partial(made, group), compression, options)
    return hook


def _nodes(compression: CompressionConfig, group: dist.ProcessGroup | None) -> NodeGroups | None:
    if group is None or compression.aggregation != Hierarchical.name:
        return None
    return node_groups(group, node=this_node())


def _memory(compression: CompressionConfig, replicas: int) -> Memory | None:
    correction = compression.momentum_correction
    if correction is not None:
        return MomentumCorrection(momentum=correction.momentum, clip=correction.clip, replicas=replicas)
    return ErrorFeedback() if compression.error_feedback else None


def _called(made: Any, compression: CompressionConfig, options: dict[str, Any]) -> Any:
    """What ``made`` makes of the options.

    Raises:
        ConfigError: it does not take them.
    """
    try:
        return made(**options)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        takes = inspect.signature(made).parameters
        shared = set(CompressionConfig.model_fields) - {"codec"}
        allowed = [name for name in takes if name not in ("group", *shared)]
        beside = sorted(shared if isinstance(made, type) else {"bucket_size", *(shared & set(takes))})
        raise ConfigError(
            f"recparallel.compression: codec {compression.codec!r} does not take {compression.options}; "
            f"it takes {allowed or 'no options'}, beside {', '.join(beside)}: {error}"
        ) from error
