"""Rows that hold several histories, through a pipeline: every stage reads from its micro-batches where histories begin.

So nothing but hidden states crosses a boundary, as ever.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor

from recparallel.data.batching import PackedBatch
from recparallel.engines.bindings import Bindings
from recparallel.errors import ConfigError
from recparallel.models.packing import Packing

Sample: TypeAlias = tuple[Tensor, Tensor] | PackedBatch
"""One micro-batch, to time layers with."""


def packings_of(engine: Any, batches: Sequence[Any] | None, *, expected: bool) -> Iterator[Packing] | None:
    """How the rows of these micro-batches are divided, one after the other; None where each is one history.

    Args:
        engine: a pipeline engine.
        batches: micro-batches of a step; None on a stage without data.
        expected: the config says that they are packed.

    Raises:
        ConfigError: this stage has none of those that are expected, or some that are not.
    """
    packed = [isinstance(batch, PackedBatch) for batch in batches or ()]
    if expected and not packed:
        raise ConfigError(
            f"rank {engine.global_rank} was given no micro-batches: with recparallel.lengths 'packed' every stage needs them, to "
            "know where histories begin"
        )
    if any(packed) and not (expected and all(packed)):
        raise ConfigError(
            f"rank {engine.global_rank} was given {sum(packed)} packed micro-batches of {len(packed)}: with recparallel.lengths "
            f"{'packed' if expected else 'fixed or dynamic'!r} {'all' if expected else 'none'} of a training step's may be"
        )
    return _handed_over(deque(Packing(batch.positions_BL) for batch in batches or ())) if any(packed) else None


def _handed_over(packings: deque[Packing]) -> Iterator[Packing]:
    """Each once, and not kept: it holds masks that are large where rows are long."""
    while packings:
        yield packings.popleft()


@contextmanager
def packed_step(module: Any, packings: Iterator[Packing] | None) -> Iterator[None]:
    """Within the block the module's forward passes are those of these micro-batches, in order."""
    bindings = Bindings()
    if packings is not None:
        bindings.bind(module, "packings", packings)
    try:
        yield
    finally:
        bindings.remove()
