"""Softmax over the target and the other targets of its micro-batch."""

import torch
from torch import Tensor

from recparallel.models.losses.sampled_softmax import SampledSoftmax


class InBatchSoftmax(SampledSoftmax):
    """Sampled softmax whose negatives are the targets of the micro-batch: their rows are read anyway.

    Each different target is there once. Were the other ``N - 1`` targets drawn by popularity, it would be among them with the
    probability ``π_j = 1 - (1 - q_j) ** (N - 1)``; its score is corrected to ``s_j - log π_j``, so that popular items, which are
    negatives more often, count for less. (Targets come in whole histories, whose items are not independent draws.)

    Source: Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019, with inclusion
    probabilities, since repeated targets are taken once.

    Args:
        num_items: items are rows ``1 … num_items`` of the table.
        item_counts: interactions per row, shape (num_items + 1,), or None for uniform; of an item that a micro-batch has all the
            same, one is counted.
    """

    knows_shares = True
    reads_rows = True

    def __init__(self, *, num_items: int, item_counts: Tensor | None = None) -> None:
        super().__init__(num_items=num_items, item_counts=item_counts, power=1.0)

    def candidates(self, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Different targets, and the logarithm of the probability that each is among them."""
        items_K = targets_N.unique()
        q_K = self.q.double().to(items_K.device)[items_K]
        others = max(1, len(targets_N) - 1)
        return items_K, torch.log(-torch.expm1(others * torch.log1p(-q_K))).to(torch.float32)
