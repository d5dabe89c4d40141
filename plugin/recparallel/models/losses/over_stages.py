"""The softmax over a table of which other processes hold the rest, in two steps with a message between them.

Shapes: N targets, D width, S rows on this stage.
"""

import torch
from torch import Tensor

from recparallel.tensor_parallel import TensorRanks
from recparallel.tensor_parallel.table import own_rows


class ShareOfScores:
    """One micro-batch's scores against this stage's rows.

    Their exponentials are kept for the gradient, in the precision of the weights. The gradient of the scores is never made: its
    factor for each target goes to that target's hidden state, and what its own row gets on top is added there.

    Args:
        hidden_ND: hidden states of its targets.
        table_SD: the rows, a parameter.
        targets_N: rows of the whole table.
        num_rows: of the whole table.
        ranks: whose share ``table_SD`` is.

    Attributes:
        summary: (2, N), at least fp32: the logarithm of the sum of their exponentials, and the target's score where this stage has
            its row, else 0.
    """

    def __init__(
        self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor, *, num_rows: int, ranks: TensorRanks
    ) -> None:
        self._hidden_ND, self._table_SD = hidden_ND.detach(), table_SD
        local_N, own_N = own_rows(targets_N, num_rows, ranks)
        self._exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        scores_NS = (self._hidden_ND @ table_SD.detach().T).to(self._exact)
        picked_N = scores_NS.gather(1, local_N[:, None]).squeeze(1).masked_fill(~own_N, 0.0)
        self._largest_N = scores_NS.amax(1)
        exponentials_NS = scores_NS.sub_(self._largest_N[:, None]).exp_()
        self.summary = torch.stack([self._largest_N + exponentials_NS.sum(1).log(), picked_N])
        self._exponentials_NS = exponentials_NS.to(hidden_ND.dtype)
        self._targets_here = own_N.nonzero().squeeze(1)  # K of them, by number
        self._rows_K = local_N[self._targets_here]

    def backward(self, normalizer_N: Tensor, scale: float) -> Tensor:
        """Add this share's part to the gradient of the rows; its part of the gradient of the hidden states, (N, D).

        Args:
            normalizer_N: logarithm of the sum of the exponentials over the whole table.
            scale: by which the sum of the cross-entropies is multiplied.
        """
        hidden_ND, table_SD, dtype = self._hidden_ND, self._table_SD.detach(), self._hidden_ND.dtype
        factor_N1 = (self._largest_N - normalizer_N).exp_().mul_(scale)[:, None]
        here, rows = self._targets_here, self._rows_K
        grad_hidden_ND = (self._exponentials_NS @ table_SD).to(self._exact).mul_(factor_N1)
        grad_hidden_ND.index_add_(0, here, table_SD[rows].to(self._exact), alpha=-scale)
        grad_table_SD = self._exponentials_NS.T @ (hidden_ND * factor_N1).to(dtype)
        grad_table_SD.index_add_(0, rows, hidden_ND[here], alpha=-scale)
        # By way of autograd, which tells the optimizer's hooks.
        with torch.enable_grad():
            table = self._table_SD.view_as(self._table_SD)
        torch.autograd.backward([table], [grad_table_SD])
        return grad_hidden_ND.to(dtype)


def merge(summaries: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Normalizer (N,) and cross-entropy (N,) of each target, from what every stage found."""
    normalizers, picked = zip(*summaries)
    normalizer_N = torch.stack(normalizers).logsumexp(0)
    return normalizer_N, normalizer_N - torch.stack(picked).sum(0)
