"""The gradient hook that the config names."""

import inspect
from typing import Any

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
    check_codec(compression)
    if compression is None:
        return None
    made = registry.codecs.load(compression.codec)
    if not isinstance(made, type):
        hook: BoundHook = made(group, **compression.options)
        return hook
    state = CompressedAverage(made(**compression.options), group, error_feedback=compression.error_feedback)
    return CompressedHook(compression.codec, average_compressed, state)


def check_codec(compression: CompressionConfig | None) -> None:
    """Try the options, so that a wrong one is refused before any process group exists.

    Raises:
        ConfigError: says which options there are.
    """
    if compression is None:
        return
    made: Any = registry.codecs.load(compression.codec)
    try:
        if isinstance(made, type):
            made(**compression.options)
        else:
            inspect.signature(made).bind(None, **compression.options)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        allowed = [name for name in inspect.signature(made).parameters if name != "group"]
        raise ConfigError(
            f"recparallel.compression: codec {compression.codec!r} does not take {compression.options}; "
            f"it takes {allowed or 'no options'}: {error}"
        ) from error
