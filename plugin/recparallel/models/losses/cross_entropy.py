"""Softmax over the whole catalogue."""

import torch
from torch import Tensor
from torch.nn import functional

from recparallel.models.losses.base import TargetLoss
from recparallel.tensor_parallel.table import cross_entropies


class CrossEntropy(TargetLoss):
    """Cross-entropy of each target against every row of the table, in at least fp32."""

    knows_shares = True

    def __init__(self, *, num_items: int) -> None:
        self.num_items = num_items

    def total(self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor) -> Tensor:
        scores_NS = (hidden_ND @ table_SD.T).to(torch.promote_types(hidden_ND.dtype, torch.float32))
        if self.ranks.alone:
            return functional.cross_entropy(scores_NS, targets_N, reduction="sum")
        return cross_entropies(scores_NS, targets_N, self.num_items + 1, self.ranks).sum()
