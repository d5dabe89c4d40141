"""Global batches of which replicas read parts of different sizes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparallel.data.sampler import GlobalBatchSampler


class SharedSampler(GlobalBatchSampler):
    """Deal the rows of each global batch out by what replicas can do.

    A step's rows are those of a :class:`GlobalBatchSampler`, whatever the shares; replica by replica, micro-batch by micro-batch.

    Args:
        rows: gives the rows of a micro-batch of each replica, at least one, and ``num_replicas · micro_batch`` in all; asked for
            each step, and the same on every replica.
        others: of :class:`GlobalBatchSampler`.
    """

    def __init__(self, num_rows: int, *, rows: Callable[[], Sequence[int]], **others: Any) -> None:
        super().__init__(num_rows, **others)
        self._rows = rows

    def __iter__(self) -> Iterator[list[NDArray[np.int64]]]:
        epoch = self.epoch
        steps = self._epoch_rows(epoch).reshape(self.steps_per_epoch, self.global_batch)
        while self.epoch == epoch:
            step = self.step
            self.epoch, self.step = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            rows = self._rows()
            before, own = self.num_micro_batches * sum(rows[: self.replica]), rows[self.replica]
            part = steps[step, before : before + self.num_micro_batches * own]
            yield list(part.reshape(self.num_micro_batches, own))
