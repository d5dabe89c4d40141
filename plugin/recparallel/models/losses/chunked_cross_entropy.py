"""Softmax over the whole catalogue, for as many targets at a time as fit into a given memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recparallel.errors import ConfigError
from recparallel.models.losses.base import TargetLoss

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

    def __init__(self, *, num_items: int, chunk_mib: float = 64.0) -> None:
        if not chunk_mib > 0:
            raise ConfigError(f"chunk_mib must be above 0, got {chunk_mib}")
        self.num_items = num_items
        self.chunk_mib = chunk_mib

    def total(self, hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor) -> Tensor:
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        row_bytes = len(table_VD) * torch.finfo(exact).bits // 8
        chunk = max(1, int(self.chunk_mib * _MIB) // row_bytes)
        train = torch.is_grad_enabled()
        total: Tensor = _ChunkedSum.apply(hidden_ND, table_VD, targets_N, chunk, exact, train)
        return total


class _ChunkedSum(torch.autograd.Function):
    """Sum of the cross-entropies of N targets; the gradients are made with it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        chunk: int,
        exact: torch.dtype,
        train: bool,
    ) -> Tensor:
        total = torch.zeros((), dtype=exact, device=hidden_ND.device)
        of_hidden, of_table, *_ = ctx.needs_input_grad
        # What fp16 cannot hold before the loss is scaled is kept in fp32.
        kept = exact if hidden_ND.dtype == torch.float16 else hidden_ND.dtype
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=kept) if of_hidden and train else None
        grad_table_VD = torch.zeros_like(table_VD, dtype=exact) if of_table and train else None
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            scores_CV = (hidden_ND[part] @ table_VD.T).to(exact)
            normalizer_C1 = scores_CV.logsumexp(1, keepdim=True)
            index_C1 = targets_N[part, None]
            total += (normalizer_C1 - scores_CV.gather(1, index_C1)).sum()
            if grad_hidden_ND is None and grad_table_VD is None:
                continue
            # From here on the scores' memory holds their gradient.
            grad_CV = scores_CV.sub_(normalizer_C1).exp_()
            grad_CV.scatter_add_(1, index_C1, torch.full_like(index_C1, -1, dtype=exact))
            grad_CV = grad_CV.to(kept)
            if grad_hidden_ND is not None:
                grad_hidden_ND[part] = grad_CV @ table_VD.to(kept)
            if grad_table_VD is not None:
                _add_product(grad_table_VD, grad_CV.T, hidden_ND[part].to(kept))
        ctx.save_for_backward(grad_hidden_ND, grad_table_VD)
        ctx.dtypes = hidden_ND.dtype, table_VD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if made is None else (made * grad).to(dtype) for made, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        )
        return *scaled, *(None,) * 4


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, without a copy where the dtypes are equal."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += (left @ right).to(total.dtype)
