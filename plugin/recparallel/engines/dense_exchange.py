"""Report DeepSpeed's own gradient exchange, where no hook replaces it, so that wire bytes are comparable."""

import time
from typing import Any

from recparallel import events
from recparallel.engines.bindings import Bindings


def bind_exchange_report(engine: Any, bindings: Bindings) -> None:
    """Emit one :class:`~recparallel.events.Exchange` a step for ``engine.allreduce_gradients`` or the bf16
    optimizer's reduction."""
    num_bytes = (
        sum(p.numel() for p in engine.module.parameters() if p.requires_grad) * engine.communication_data_type.itemsize
    )
    for name in ("allreduce_gradients", "_bf16_reduce_grads"):
        bindings.bind(engine, name, _reported(getattr(engine, name), num_bytes))


def _reported(reduce: Any, num_bytes: int) -> Any:
    def reported(*args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        reduce(*args, **kwargs)
        events.emit(events.Exchange(0, "deepspeed", num_bytes, num_bytes, time.perf_counter() - start))

    return reported
