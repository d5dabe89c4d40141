"""The softmax of scores against the rows of a table, of which other ranks may hold the rest.

Shapes: N targets, D width, S rows here, K targets whose rows are here.
"""

import torch
from torch import Tensor

from recparallel.tensor_parallel import TensorRanks
from recparallel.tensor_parallel.table import own_rows


class ShareOfScores:
    """Scores against the rows here.

    Their exponentials are kept for the gradient, in the precision of the weights. The gradient of the scores is never made: its
    factor for each target goes to that target's hidden state, and what the target's own row gets on top is added there. This takes
    about two thirds of the time of ``torch.nn.functional.cross_entropy`` and its backward pass, and half of the memory in bf16.

    Args:
        hidden_ND: hidden states of the targets.
        table_SD: the rows.
        targets_N: rows of the whole table.
        num_rows: of the whole table.
        ranks: whose share ``table_SD`` is.

    Attributes:
        summary: (2, N), at least fp32: the logarithm of the sum of their exponentials, and the target's score where its row is
            here, else 0.
    """

    def __init__(
        self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor, *, num_rows: int, ranks: TensorRanks
    ) -> None:
        self._hidden_ND, self._table_SD = hidden_ND.detach(), table_SD.detach()
        local_N, own_N = own_rows(targets_N, num_rows, ranks)
        self._exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        # What fp16 cannot hold before the loss is scaled is kept in fp32.
        self._kept = self._exact if hidden_ND.dtype == torch.float16 else hidden_ND.dtype
        scores_NS = (self._hidden_ND @ self._table_SD.T).to(self._exact)
        picked_N = scores_NS.gather(1, local_N[:, None]).squeeze(1).masked_fill(~own_N, 0.0)
        self._largest_N = scores_NS.amax(1)
        exponentials_NS = scores_NS.sub_(self._largest_N[:, None]).exp_()
        self.summary = torch.stack([self._largest_N + exponentials_NS.sum(1).log(), picked_N])
        self._exponentials_NS = exponentials_NS.to(self._kept)
        self._here_K = own_N.nonzero().squeeze(1)
        self._rows_K = local_N[self._here_K]

    def gradients(self, normalizer_N: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Of the sum of the cross-entropies: this share's part of that by the hidden states (N, D), and that by the rows (S, D).

        Args:
            normalizer_N: logarithm of the sum of the exponentials over the whole table.
            scale: by which the sum is multiplied, without a dimension, at least fp32.
        """
        hidden_ND, table_SD, kept = self._hidden_ND, self._table_SD, self._kept
        factor_N1 = ((self._largest_N - normalizer_N).exp_() * scale)[:, None]
        grad_hidden_ND = (self._exponentials_NS @ table_SD.to(kept)).to(self._exact).mul_(factor_N1)
        grad_hidden_ND.index_add_(0, self._here_K, table_SD[self._rows_K].to(self._exact) * -scale)
        grad_table_SD = self._exponentials_NS.T @ (hidden_ND * factor_N1).to(kept)
        grad_table_SD.index_add_(0, self._rows_K, (hidden_ND[self._here_K].to(self._exact) * -scale).to(kept))
        return grad_hidden_ND.to(hidden_ND.dtype), grad_table_SD.to(table_SD.dtype)


def merge(summaries: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Normalizer (N,) and cross-entropy (N,) of each target, from what every share found."""
    normalizers, picked = zip(*summaries)
    normalizer_N = torch.stack(normalizers).logsumexp(0)
    return normalizer_N, normalizer_N - torch.stack(picked).sum(0)
