"""Softmax over the whole catalogue."""

from torch import Tensor
from torch.nn import functional

from recparallel.models.losses.base import TargetLoss


class CrossEntropy(TargetLoss):
    """Cross-entropy of each target against every row of the table, in fp32."""

    def __init__(self, *, num_items: int) -> None:
        self.num_items = num_items

    def total(self, hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor) -> Tensor:
        return functional.cross_entropy((hidden_ND @ table_VD.T).float(), targets_N, reduction="sum")
