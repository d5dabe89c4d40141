"""The softmax over a table of which other processes hold the rest, in two steps with a message between them.

Shapes: N targets, D width, S rows on this stage.
"""

import torch
from torch import Tensor

from recparallel.tensor_parallel import TensorRanks
from recparallel.tensor_parallel.table import own_rows


class ShareOfScores:
    """One micro-batch's scores against this stage's rows.

    Args:
        hidden_ND: hidden states of its targets.
        table_SD: the rows.
        targets_N: rows of the whole table.
        num_rows: of the whole table.
        ranks: whose share ``table_SD`` is.

    Attributes:
        summary: (2, N): the logarithm of the sum of their exponentials, and the target's score where this stage has its row,
            else 0.
    """

    def __init__(
        self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor, *, num_rows: int, ranks: TensorRanks
    ) -> None:
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        self._hidden_ND = hidden_ND.detach().requires_grad_()
        with torch.enable_grad():
            self._scores_NS = (self._hidden_ND @ table_SD.T).to(exact)
        self._local_N, self._own_N = own_rows(targets_N, num_rows, ranks)
        scores_NS = self._scores_NS.detach()
        picked_N = scores_NS.gather(1, self._local_N[:, None]).squeeze(1).masked_fill(~self._own_N, 0.0)
        # From here on the scores' memory holds their exponentials, which the gradient needs too.
        self._largest_N = scores_NS.amax(1)
        exponentials_NS = scores_NS.sub_(self._largest_N[:, None]).exp_()
        self.summary = torch.stack([self._largest_N + exponentials_NS.sum(1).log(), picked_N])

    def backward(self, normalizer_N: Tensor, scale: float) -> Tensor:
        """Add this share's part to the gradient of the rows; its part of the gradient of the hidden states, (N, D).

        Args:
            normalizer_N: logarithm of the sum of the exponentials over the whole table.
            scale: by which the sum of the cross-entropies is multiplied.
        """
        exponentials_NS = self._scores_NS.detach()
        grad_NS = exponentials_NS.mul_((self._largest_N - normalizer_N).exp_().mul_(scale)[:, None])
        grad_NS.scatter_add_(1, self._local_N[:, None], -scale * self._own_N[:, None].to(grad_NS.dtype))
        torch.autograd.backward([self._scores_NS], [grad_NS])
        gradient = self._hidden_ND.grad
        assert gradient is not None
        return gradient


def merge(summaries: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Normalizer (N,) and cross-entropy (N,) of each target, from what every stage found."""
    normalizers, picked = zip(*summaries)
    normalizer_N = torch.stack(normalizers).logsumexp(0)
    return normalizer_N, normalizer_N - torch.stack(picked).sum(0)
