"""What every loss shares: the mean is over targets, wherever they lie.

A pipeline averages its micro-batches uniformly, and data parallelism its replicas. With ragged histories that weighs
a target by how full its micro-batch happens to be. A :class:`TargetLoss` therefore divides the *sum* over its
micro-batch by the number of targets that the engine found in the whole global batch, divided by the number of
micro-batches in it. The uniform average of that is the mean over all targets.

Shapes: B sequences, L positions, D width, V rows of the table, S of them on this rank, N targets.
"""

import copy
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from recparallel.data.markers import IGNORE
from recparallel.errors import ConfigError
from recparallel.tensor_parallel import ALONE, TensorRanks
from recparallel.tensor_parallel.exchange import copy_to_ranks


class TargetLoss(ABC):
    """Mean loss over the targets of a global batch.

    Attributes:
        targets_per_micro_batch: mean number of targets in a micro-batch of the current global batch, set by the
            engine before the first forward pass of a step. ``None`` divides by the targets of the micro-batch at
            hand.
        ranks: that share the table; a loss is given :meth:`for_ranks`.
        knows_shares: ``total`` asks ``ranks`` which rows the table that it is given holds.
        reads_rows: ``total`` reads single rows of the table, by :func:`~recparallel.models.row_gradients.look_up_rows` where the
            table has a keeper, and not all of them.
    """

    targets_per_micro_batch: float | None = None
    ranks: TensorRanks = ALONE
    knows_shares: ClassVar[bool] = False
    reads_rows: ClassVar[bool] = False

    @abstractmethod
    def total(self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor) -> Tensor:
        """Sum of the losses of N targets, fp32; N may be 0, the result must then be 0 with a gradient.

        Args:
            hidden_ND: the same on all ranks.
            table_SD: rows ``ranks.share(V)`` of the table, so all of them on a rank that is alone.
            targets_N: rows of the whole table.
        """

    def for_ranks(self, ranks: TensorRanks) -> "TargetLoss":
        """The same loss over a table that ``ranks`` share.

        Raises:
            ConfigError: the loss needs the whole table.
        """
        if (
            not vars(type(self)).get("knows_shares", False) and not ranks.alone
        ):  # not by inheritance: ``total`` may be its own
            raise ConfigError(
                f"loss {type(self).__name__} needs the whole table on every rank, which {ranks.size} tensor ranks share; "
                "use recparallel.tensor 1"
            )
        shared = copy.copy(self)
        shared.ranks = ranks
        return shared

    def count(self, labels_BL: Tensor) -> int:
        """How many positions have a target."""
        return int((labels_BL != IGNORE).sum())

    def __call__(self, outputs: tuple[Tensor, Tensor], labels_BL: Tensor) -> Tensor:
        hidden_BLD, table_SD = outputs
        wanted_BL = labels_BL != IGNORE
        targets_N = labels_BL[wanted_BL]
        per_micro_batch = self.targets_per_micro_batch or max(len(targets_N), 1)  # may lie below 1, but is not 0
        hidden_ND = copy_to_ranks(hidden_BLD[wanted_BL], self.ranks)
        return self.total(hidden_ND, table_SD, targets_N) / per_micro_batch
