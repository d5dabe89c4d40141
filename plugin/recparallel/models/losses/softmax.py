"""The softmax of scores against the rows of a table, of which other ranks may hold the rest.

Shapes: N targets, D width, S rows here, R of them whose scores are made at once, K targets whose rows are here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recparallel.tensor_parallel import TensorRanks
from recparallel.tensor_parallel.table import own_rows

_AT_ONCE = {"cpu": 2**21}
"""Scores that are made at once. A CPU keeps so many in its caches, from the product through the exponential to the sum, which
takes a third less time than all at once."""

_AT_ONCE_ELSEWHERE = 2**26
_FEWEST_ROWS = 1024
"""With fewer at once the products are slow."""


class ShareOfScores:
    """Scores against the rows here, made for some of the rows after the others.

    Their exponentials are kept for the gradient, in the precision of the weights. The gradient of the scores is never made: its
    factor for each target goes to that target's hidden state, and what the target's own row gets on top is added there. This takes
    about seven tenths of the time of ``torch.nn.functional.cross_entropy`` and its backward pass, and half of the memory in bf16.

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
        device = hidden_ND.device.type
        self._types = hidden_ND.dtype, table_SD.dtype
        # Products into memory that is there already know nothing of autocast.
        factors = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        hidden_ND, table_SD = hidden_ND.detach().to(factors), table_SD.detach().to(factors)
        self._hidden_ND, self._table_SD = hidden_ND, table_SD
        local_N, own_N = own_rows(targets_N, num_rows, ranks)
        self._exact = torch.promote_types(factors, torch.float32)
        # What fp16 cannot hold before the loss is scaled is kept in fp32.
        self._kept = self._exact if factors == torch.float16 else factors
        at_once = _AT_ONCE.get(device, _AT_ONCE_ELSEWHERE)
        self._rows = max(_FEWEST_ROWS, at_once // max(1, len(hidden_ND)))
        picked_N = hidden_ND.new_zeros(len(hidden_ND), dtype=self._exact)
        normalizers = []
        self._parts: list[_Part] = []
        # One place for all scores: they overwrite each other in the caches.
        place = _Scores(len(hidden_ND), min(self._rows, len(table_SD)), hidden_ND, self._exact)
        for number, some_RD in enumerate(table_SD.split(self._rows)):
            scores_NR = place.scores(hidden_ND, some_RD)
            row_N = local_N - number * self._rows
            found_N = scores_NR.gather(1, row_N.clamp(0, len(some_RD) - 1)[:, None]).squeeze(1)
            picked_N = torch.where(own_N & (row_N >= 0) & (row_N < len(some_RD)), found_N, picked_N)
            largest_N = scores_NR.amax(1)
            exponentials_NR = scores_NR.sub_(largest_N[:, None]).exp_()
            normalizers.append(largest_N + exponentials_NR.sum(1).log())
            self._parts.append(_Part(largest_N, exponentials_NR.to(self._kept, copy=True)))
        self.summary = torch.stack([torch.stack(normalizers).logsumexp(0), picked_N])
        self._here_K = own_N.nonzero().squeeze(1)
        self._rows_K = local_N[self._here_K]

    def gradients(self, normalizer_N: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Of the sum of the cross-entropies: this share's part of that by the hidden states (N, D), and that by the rows (S, D).

        Args:
            normalizer_N: logarithm of the sum of the exponentials over the whole table.
            scale: by which the sum is multiplied, without a dimension, at least fp32.
        """
        hidden_ND, table_SD, kept = self._hidden_ND, self._table_SD, self._kept
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=self._exact)
        grad_table_SD = torch.empty_like(table_SD, dtype=kept)
        tables, grads = table_SD.to(kept).split(self._rows), grad_table_SD.split(self._rows)
        for part, some_RD, grad_RD in zip(self._parts, tables, grads):
            factor_N1 = ((part.largest_N - normalizer_N).exp_() * scale)[:, None]
            grad_hidden_ND.addcmul_((part.exponentials_NR @ some_RD).to(self._exact), factor_N1)
            torch.mm(part.exponentials_NR.T, (hidden_ND * factor_N1).to(kept), out=grad_RD)
        grad_hidden_ND.index_add_(0, self._here_K, table_SD[self._rows_K].to(self._exact) * -scale)
        grad_table_SD.index_add_(0, self._rows_K, (hidden_ND[self._here_K].to(self._exact) * -scale).to(kept))
        return grad_hidden_ND.to(self._types[0]), grad_table_SD.to(self._types[1])


class _Scores:
    """Memory for the scores of N targets against R rows at a time."""

    def __init__(self, targets: int, rows: int, like: Tensor, exact: torch.dtype) -> None:
        self._made = like.new_empty(targets * rows)
        self._exact = self._made if like.dtype == exact else like.new_empty(targets * rows, dtype=exact)

    def scores(self, hidden_ND: Tensor, some_RD: Tensor) -> Tensor:
        """(N, R), at least fp32, until the next call."""
        shape = len(hidden_ND), len(some_RD)
        made_NR = torch.mm(hidden_ND, some_RD.T, out=self._made[: shape[0] * shape[1]].view(shape))
        return made_NR if self._exact is self._made else self._exact[: made_NR.numel()].view(shape).copy_(made_NR)


class _Part(NamedTuple):
    """Of R of the rows: each target's largest score, and the exponentials of the scores less that."""

    largest_N: Tensor
    exponentials_NR: Tensor


def merge(summaries: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Normalizer (N,) and cross-entropy (N,) of each target, from what every share found."""
    normalizers, picked = zip(*summaries)
    normalizer_N = torch.stack(normalizers).logsumexp(0)
    return normalizer_N, normalizer_N - torch.stack(picked).sum(0)
