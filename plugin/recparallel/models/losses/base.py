"""What every loss shares: the mean is over targets, wherever they lie.

A pipeline averages its micro-batches uniformly, and data parallelism its replicas. With ragged histories that weighs
a target by how full its micro-batch happens to be. A :class:`TargetLoss` therefore divides the *sum* over its
micro-batch by the number of targets that the engine found in the whole global batch, divided by the number of
micro-batches in it. The uniform average of that is the mean over all targets.

Shapes: B sequences, L positions, D width, V rows of the table, N targets.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from recparallel.data.markers import IGNORE


class TargetLoss(ABC):
    """Mean loss over the targets of a global batch.

    Attributes:
        targets_per_micro_batch: mean number of targets in a micro-batch of the current global batch, set by the
            engine before the first forward pass of a step. ``None`` divides by the targets of the micro-batch at
            hand.
    """

    targets_per_micro_batch: float | None = None

    @abstractmethod
    def total(self, hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor) -> Tensor:
        """Sum of the losses of N targets, fp32; N may be 0, the result must then be 0 with a gradient."""

    def count(self, labels_BL: Tensor) -> int:
        """How many positions have a target."""
        return int((labels_BL != IGNORE).sum())

    def __call__(self, outputs: tuple[Tensor, Tensor], labels_BL: Tensor) -> Tensor:
        hidden_BLD, table_VD = outputs
        wanted_BL = labels_BL != IGNORE
        targets_N = labels_BL[wanted_BL]
        per_micro_batch = self.targets_per_micro_batch or max(len(targets_N), 1)  # may lie below 1, but is not 0
        return self.total(hidden_BLD[wanted_BL], table_VD, targets_N) / per_micro_batch
