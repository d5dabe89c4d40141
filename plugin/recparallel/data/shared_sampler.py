"""Global batches of which replicas read parts of different sizes."""

from collections.abc import Callable, Sequence
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

    def _own(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        shares, count = self._rows(), self.num_micro_batches
        before, own = count * sum(shares[: self.replica]), shares[self.replica]
        return list(rows.reshape(-1)[before : before + count * own].reshape(count, own))
