"""Softmax over the target and a few negatives that all positions of a micro-batch share."""

import torch
from torch import Tensor

from recparallel.errors import ConfigError
from recparallel.models.losses.base import TargetLoss
from recparallel.models.row_gradients import rows_of
from recparallel.tensor_parallel.exchange import logsumexp_over_ranks, sum_over_ranks
from recparallel.tensor_parallel.table import own_rows

_NOTHING = -1e30
"""Stands in for minus infinity, whose difference with itself is no number; ``exp`` of it is 0."""


class SampledSoftmax(TargetLoss):
    """Sampled softmax with shared negatives and the log-Q correction.

    1. Draw ``K`` negatives with replacement from ``q`` (uniform over the items, or in proportion to ``item_counts **
       power``).
    2. Correct the negatives' scores, ``s'_j = s_j - log(K · q_j)``, so that the sum over the sample estimates the one
       over the catalogue. The target is not drawn but always there, so its score stays as it is.
    3. Remove accidental hits: a negative that equals a position's target counts as minus infinity there.

    Sources: Bengio & Senécal, "Adaptive importance sampling to accelerate training of a neural probabilistic language
    model", 2008; Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys
    2019.

    Args:
        num_items: items are rows ``1 … num_items`` of the table.
        num_negatives: K.
        item_counts: interactions per row, shape (num_items + 1,), or None for uniform.
        power: flattens the popularity distribution.

    The negatives come from torch's global RNG, which the engine seeds for every micro-batch: each run draws the same. Ranks
    that share the table draw the same too, and each scores those that it has.

    Example:
        >>> loss = SampledSoftmax(num_items=1000, num_negatives=64)
    """

    knows_shares = True
    reads_rows = True

    def __init__(
        self, *, num_items: int, num_negatives: int = 512, item_counts: Tensor | None = None, power: float = 0.75
    ) -> None:
        if num_negatives < 1:
            raise ConfigError(f"num_negatives must be at least 1, got {num_negatives}")
        if item_counts is not None and len(item_counts) != num_items + 1:
            raise ConfigError(f"item_counts has {len(item_counts)} rows, expected num_items + 1 = {num_items + 1}")
        weights = torch.ones(num_items + 1) if item_counts is None else item_counts.float().clamp_min(1.0) ** power
        weights[0] = 0.0
        self.num_items = num_items
        self.num_negatives = num_negatives
        self.q = weights / weights.sum()
        self._cumulative = self.q.double().cumsum(0)

    def sample(self) -> Tensor:
        """K item rows, int64, drawn from ``q`` (by bisection on the cumulative weights: any catalogue size)."""
        points = torch.rand(self.num_negatives, dtype=torch.float64) * self._cumulative[-1]
        return torch.searchsorted(self._cumulative, points, right=True).clamp_max(self.num_items)

    def candidates(self, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Items to set the targets against, int64 (K,), and the logarithm of how often each is expected to be there."""
        items_K = self.sample().to(targets_N.device)
        return items_K, (self.num_negatives * self.q).log().to(items_K.device)[items_K]

    def total(self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor) -> Tensor:
        rows = self.num_items + 1
        negatives_K, log_expected_K = self.candidates(targets_N)
        local_K, own_K = own_rows(negatives_K, rows, self.ranks)
        local_N, own_N = own_rows(targets_N, rows, self.ranks)
        if not self.ranks.alone:
            negatives_K, local_K, log_expected_K = negatives_K[own_K], local_K[own_K], log_expected_K[own_K]
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        positive_N = (hidden_ND * rows_of(table_SD, local_N)).sum(-1).to(exact)
        negative_NK = (hidden_ND @ rows_of(table_SD, local_K).T).to(exact) - log_expected_K
        negative_NK = negative_NK.masked_fill(targets_N[:, None] == negatives_K, float("-inf"))
        # A rank without the target, and perhaps without any negative, has nothing to add.
        scores_NS = torch.cat([positive_N.masked_fill(~own_N, _NOTHING)[:, None], negative_NK], dim=1)
        positive_N = sum_over_ranks(positive_N.masked_fill(~own_N, 0.0), self.ranks)
        return (logsumexp_over_ranks(scores_NS.logsumexp(1), self.ranks) - positive_N).sum()
