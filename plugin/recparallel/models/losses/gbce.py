"""Binary cross-entropy with sampled negatives, calibrated for their number."""

import torch
from torch import Tensor
from torch.nn import functional

from recparallel.errors import ConfigError
from recparallel.models.losses.sampled_softmax import SampledSoftmax
from recparallel.models.row_gradients import rows_of
from recparallel.tensor_parallel.exchange import sum_over_ranks
from recparallel.tensor_parallel.table import own_rows


class GBCE(SampledSoftmax):
    """Is an item the next one, or not? Asked of the target and of ``K`` shared, uniform negatives.

    With few negatives a plain binary cross-entropy (``calibration`` 0) makes models too sure. The target's term is therefore taken
    ``β = α (t (1 - 1 / α) + 1 / α)`` times, for the share ``α = K / (num_items - 1)`` of the other items that is drawn and the
    calibration ``t``; at 1 the probabilities are those of a softmax over the catalogue. A negative that is a position's target is
    left out there.

    Source: Petrov & Macdonald, "gSASRec: Reducing overconfidence in sequential recommendation trained with negative
    sampling", RecSys 2023.

    Args:
        num_items: items are rows ``1 … num_items`` of the table, at least two.
        num_negatives: K.
        calibration: t, from 0 to 1.
    """

    knows_shares = True
    reads_rows = True

    def __init__(self, *, num_items: int, num_negatives: int = 256, calibration: float = 0.75) -> None:
        if not 0.0 <= calibration <= 1.0:
            raise ConfigError(f"calibration must lie in [0, 1], got {calibration}")
        if num_items < 2:
            raise ConfigError(f"gbce sets an item against others, and num_items is {num_items}")
        super().__init__(num_items=num_items, num_negatives=num_negatives)
        share = min(1.0, num_negatives / (num_items - 1))
        self.beta = share * (calibration * (1 - 1 / share) + 1 / share)

    def total(self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor) -> Tensor:
        rows = self.num_items + 1
        negatives_K = self.sample().to(hidden_ND.device)
        local_K, own_K = own_rows(negatives_K, rows, self.ranks)
        local_N, own_N = own_rows(targets_N, rows, self.ranks)
        if not self.ranks.alone:
            negatives_K, local_K = negatives_K[own_K], local_K[own_K]
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        positive_N = (hidden_ND * rows_of(table_SD, local_N)).sum(-1).to(exact)
        negative_NK = (hidden_ND @ rows_of(table_SD, local_K).T).to(exact)
        against_NK = functional.softplus(negative_NK).masked_fill(targets_N[:, None] == negatives_K, 0.0)
        own_total_N = (self.beta * functional.softplus(-positive_N)).masked_fill(~own_N, 0.0) + against_NK.sum(1)
        return sum_over_ranks(own_total_N, self.ranks).sum() / (self.num_negatives + 1)
