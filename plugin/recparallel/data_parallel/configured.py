"""The gradient hook that the config names."""

import inspect
from typing import Any, cast

import torch.distributed as dist

from recparallel import registry
from recparallel.config import CompressionConfig
from recparallel.data_parallel.hook import BoundHook
from recparallel.data_parallel.synchronous import CompressedAverage, CompressedHook, average_compressed
from recparallel.errors import ConfigError


def configured_hook(compression: CompressionConfig | None, group: dist.ProcessGroup) -> BoundHook | None:
    """The hook for ``compression``, bound to ``group``; None without one.

    The registry holds two kinds of names: a :class:`~recparallel.compression.Codec`, and a function that makes a hook
    of its own.

    Raises:
        ConfigError: the codec does not take these options.
    """
    return None if compression is None else _make(compression, group)


def check_codec(compression: CompressionConfig | None) -> None:
    """Try the options, so that a wrong one is refused before any process group exists.

    Raises:
        ConfigError: says which options there are.
    """
    if compression is not None:
        _make(compression, None)


def _make(compression: CompressionConfig, group: dist.ProcessGroup | None) -> BoundHook:
    made: Any = registry.codecs.load(compression.codec)
    options = compression.options
    takes = inspect.signature(made).parameters
    if not isinstance(made, type):
        if "error_feedback" in takes:
            options["error_feedback"] = compression.error_feedback
        elif "error_feedback" in compression.model_fields_set:
            raise ConfigError(
                f"recparallel.compression.error_feedback is {compression.error_feedback}, but codec {compression.codec!r} "
                "leaves nothing out that could be fed back; remove the key"
            )
    try:
        if not isinstance(made, type):
            return cast(BoundHook, made(group, **options))
        state = CompressedAverage(made(**options), group, error_feedback=compression.error_feedback)
        return CompressedHook(compression.codec, average_compressed, state)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        allowed = [name for name in takes if name not in ("group", "error_feedback")]
        raise ConfigError(
            f"recparallel.compression: codec {compression.codec!r} does not take {compression.options}; "
            f"it takes {allowed or 'no options'}: {error}"
        ) from error
