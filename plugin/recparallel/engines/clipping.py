"""Clip by the norm of every gradient, each counted once.

``deepspeed.runtime.utils.clip_grad_norm_`` (0.19) adds only the gradients of ranks whose "model-parallel rank" is 0
to the norm. In a pipeline without ZeRO these are the ranks of the first stage, so the norm, and with it the update,
depends on the cut. It also counts a tied table once per stage that holds it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from recparallel.engines.bindings import Bindings
from recparallel.pieces import pieces

Rows = Callable[[], list[tuple[torch.Tensor, torch.Tensor]]]
"""Tables that DeepSpeed does not train, with what of their gradients is not zero; these count, and are clipped, with the others."""


def _no_rows() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return []


def clip_gradients(engine: Any, rows: Rows = _no_rows) -> None:
    """Scale all gradients so that their joint 2-norm is at most ``engine.gradient_clipping()``.

    Sums the squares of the own stage's gradients in fp32, leaving out tied copies (``ds_pipe_replicated``) and what another
    tensor rank counts, adds them over the ranks that together hold one replica, and scales as
    ``torch.nn.utils.clip_grad_norm_`` does. Sets ``engine._global_grad_norm``.
    """
    gradients = [(p, p.grad) for p in engine.module.parameters() if p.grad is not None] + rows()
    norm = _squares(engine, gradients).sqrt()
    factor = (engine.gradient_clipping() / (norm + 1e-6)).clamp(max=1.0)
    for _, gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
    engine._global_grad_norm = norm.item()


def _counts(engine: Any, parameter: torch.Tensor) -> bool:
    first = engine.mpu is None or engine.mpu.get_tensor_model_parallel_rank() == 0
    return not getattr(parameter, "ds_pipe_replicated", False) and (
        first or getattr(parameter, "model_parallel", False)
    )


def _squares(engine: Any, gradients: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Of the ranks that together hold one replica, fp32."""
    own = [g.norm(dtype=torch.float32).square() for p, g in gradients if _counts(engine, p)]
    squares = torch.stack(own).sum() if own else torch.zeros((), device=engine.device)
    if engine.mpu is not None:
        dist.all_reduce(squares, group=engine.mpu.get_model_parallel_group())
    return squares


def bind_norm(engine: Any, bindings: Bindings, rows: Rows = _no_rows) -> None:
    """Change what a ``BF16_Optimizer`` makes the norm of its gradients from (DeepSpeed 0.19).

    - A stage that holds nothing but tied copies, which count elsewhere, takes part with a zero. Else it would stack the norms of no
      gradients and fail, and the other ranks would wait for it.
    - On a CPU, long half-precision gradients are handed over in pieces, which are cast to fp32 one by one: half the time for a
      large table.
    """
    original = engine.optimizer.get_grads_for_norm

    def get_grads_for_norm(for_clipping: bool = False) -> Any:
        found = original(for_clipping)
        if for_clipping:
            return found + [gradient for _, gradient in rows()]
        counted = found[0] + [gradient for table, gradient in rows() if _counts(engine, table)]
        short = [piece for gradient in counted for piece in pieces(gradient)]
        return short or [torch.zeros(1, device=engine.device)], found[1]

    bindings.bind(engine.optimizer, "get_grads_for_norm", get_grads_for_norm)


def bind_zero_norm(engine: Any, bindings: Bindings, rows: Rows) -> None:
    """Count ``rows`` in the norm of a ``DeepSpeedZeroOptimizer`` without a loss scale, and clip them as it clips its own
    (``unscale_and_clip_grads``, DeepSpeed 0.19)."""
    optimizer = engine.optimizer
    original = optimizer.scaled_global_norm

    def scaled_global_norm(norm_type: int = 2) -> torch.Tensor:
        norm, squares = torch.as_tensor(original(norm_type), device=engine.device), _squares(engine, rows())
        invalid = (norm < 0) | ~squares.isfinite()
        total = torch.where(invalid, -torch.ones_like(norm), (norm.square() + squares).sqrt())
        if optimizer.clip_grad > 0:
            over = torch.where(invalid, torch.inf, (total + 1e-6) / optimizer.clip_grad).clamp(min=1.0)
            for _, gradient in rows():
                gradient.mul_((1.0 / over).to(gradient.device))
        return total

    bindings.bind(optimizer, "scaled_global_norm", scaled_global_norm)
