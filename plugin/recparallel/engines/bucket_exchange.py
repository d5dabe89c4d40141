"""One bucket through a gradient hook, whatever engine it comes from."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recparallel import events
from recparallel.collectives.bucket import Bucket
from recparallel.data_parallel.hook import BoundHook
from recparallel.errors import HookError

NO_BUCKET = -1
"""Number of an exchange that is none of a bucket."""


def exchange_bucket(
    hook: BoundHook,
    flat: Tensor,
    params: Sequence[Tensor],
    names: Sequence[str],
    *,
    index: int,
    last: bool,
    dense_bytes: int | None = None,
) -> Tensor:
    """The average of ``flat`` (N,) over the replicas, waited for; tells of it as :class:`~recparallel.events.Exchange`.

    Args:
        dense_bytes: of the gradients, where ``flat`` is another form of them.

    Raises:
        HookError: gradients are sparse, or integers.
    """
    if flat.layout != torch.strided or not flat.is_floating_point():
        what = f"of {flat.dtype}" if flat.layout == torch.strided else "sparse"
        raise HookError(
            f"gradient hook {hook.name!r}: the gradients of {', '.join(names)} are {what}; they must be dense and floating"
        )
    bucket = Bucket(flat, tuple(params), tuple(names), index, last)
    start = time.perf_counter()
    averaged: Any = hook(bucket).wait()
    events.emit(
        events.Exchange(
            bucket=index,
            codec=hook.codec_of(bucket),
            dense_bytes=flat.numel() * flat.element_size() if dense_bytes is None else dense_bytes,
            wire_bytes=hook.wire_bytes(bucket),
            seconds=time.perf_counter() - start,
        )
    )
    result: Tensor = averaged[0] if isinstance(averaged, (list, tuple)) else averaged
    return result
