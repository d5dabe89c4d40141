"""One bucket through a gradient hook, whatever engine it comes from."""

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from recparallel import events
from recparallel.collectives.bucket import Bucket
from recparallel.data_parallel.hook import BoundHook


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
    """
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
