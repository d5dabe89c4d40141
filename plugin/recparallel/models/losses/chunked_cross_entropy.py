"""Softmax over the whole catalogue, for as many targets at a time as fit into a given memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recparallel.errors import ConfigError
from recparallel.models.losses.base import TargetLoss
from recparallel.tensor_parallel import TensorRanks
from recparallel.tensor_parallel.exchange import logsumexp_of_all
from recparallel.tensor_parallel.table import own_rows, scores_of_targets, scores_to_gradient

_MIB = 2**20


class ChunkedCrossEntropy(TargetLoss):
    """:class:`~recparallel.models.losses.cross_entropy.CrossEntropy` whose memory does not grow with targets × items.

    1. Score as many targets as fit against all rows of the table, in fp32.
    2. While their scores are there, add up the loss and both gradients; then drop the scores.

    So the scores are made once, and the backward pass has only to scale what is there. In place of N × V scores and their
    softmax, a chunk of them is kept, and an fp32 gradient of the table.

    Source: the fusion of the last matrix product with the loss follows Hsu et al., "Liger Kernel: Efficient Triton Kernels for
    LLM Training", 2024.

    Args:
        num_items: items are rows ``1 … num_items`` of the table.
        chunk_mib: MiB that the scores of a chunk may take; one target is always scored.

    Raises:
        ConfigError: ``chunk_mib`` is not positive.

    Example:
        >>> loss = ChunkedCrossEntropy(num_items=200_000, chunk_mib=128)
    """

    knows_shares = True

    def __init__(self, *, num_items: int, chunk_mib: float = 64.0) -> None:
        if not chunk_mib > 0:
            raise ConfigError(f"chunk_mib must be above 0, got {chunk_mib}")
        self.num_items = num_items
        self.chunk_mib = chunk_mib

    def total(self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor) -> Tensor:
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        most_rows = -(-(self.num_items + 1) // self.ranks.size)  # of any rank: all make the same chunks
        chunk = max(1, int(self.chunk_mib * _MIB) // (most_rows * torch.finfo(exact).bits // 8))
        local_N, own_N = own_rows(targets_N, self.num_items + 1, self.ranks)
        train = torch.is_grad_enabled()
        total: Tensor = _ChunkedSum.apply(hidden_ND, table_SD, local_N, own_N, self.ranks, chunk, exact, train)
        return total


class _ChunkedSum(torch.autograd.Function):
    """Sum of the cross-entropies of N targets; the gradients are made with it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        table_SD: Tensor,
        local_N: Tensor,
        own_N: Tensor,
        ranks: TensorRanks,
        chunk: int,
        exact: torch.dtype,
        train: bool,
    ) -> Tensor:
        total = torch.zeros((), dtype=exact, device=hidden_ND.device)
        of_hidden, of_table, *_ = ctx.needs_input_grad
        # What fp16 cannot hold before the loss is scaled is kept in fp32.
        kept = exact if hidden_ND.dtype == torch.float16 else hidden_ND.dtype
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=kept) if of_hidden and train else None
        grad_table_SD = torch.zeros_like(table_SD, dtype=exact) if of_table and train else None
        for start in range(0, len(local_N), chunk):
            part = slice(start, start + chunk)
            scores_CS = (hidden_ND[part] @ table_SD.T).to(exact)
            normalizer_C = logsumexp_of_all(scores_CS.logsumexp(1), ranks)
            total += (normalizer_C - scores_of_targets(scores_CS, local_N[part], own_N[part], ranks)).sum()
            if grad_hidden_ND is None and grad_table_SD is None:
                continue
            grad_CS = scores_to_gradient(scores_CS, normalizer_C, local_N[part], own_N[part]).to(kept)
            if grad_hidden_ND is not None:
                grad_hidden_ND[part] = grad_CS @ table_SD.to(kept)
            if grad_table_SD is not None:
                _add_product(grad_table_SD, grad_CS.T, hidden_ND[part].to(kept))
        ctx.save_for_backward(grad_hidden_ND, grad_table_SD)
        ctx.dtypes = hidden_ND.dtype, table_SD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if made is None else (made * grad).to(dtype) for made, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        )
        return *scaled, *(None,) * 6


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, without a copy where the dtypes are equal."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += (left @ right).to(total.dtype)
