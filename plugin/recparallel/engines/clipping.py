"""Clip by the norm of every gradient, each counted once.

``deepspeed.runtime.utils.clip_grad_norm_`` (0.19) adds only the gradients of ranks whose "model-parallel rank" is 0
to the norm. In a pipeline without ZeRO these are the ranks of the first stage, so the norm, and with it the update,
depends on the cut. It also counts a tied table once per stage that holds it.
"""

from typing import Any

import torch
import torch.distributed as dist

from recparallel.engines.bindings import Bindings
from recparallel.pieces import pieces


def clip_gradients(engine: Any) -> None:
    """Scale all gradients so that their joint 2-norm is at most ``engine.gradient_clipping()``.

    Sums the squares of the own stage's gradients in fp32, leaving out tied copies (``ds_pipe_replicated``) and what another
    tensor rank counts, adds them over the ranks that together hold one replica, and scales as
    ``torch.nn.utils.clip_grad_norm_`` does. Sets ``engine._global_grad_norm``.
    """
    gradients = [(p, p.grad) for p in engine.module.parameters() if p.grad is not None]
    own = [g.norm(dtype=torch.float32).square() for p, g in gradients if _counts(engine, p)]
    squares = torch.stack(own).sum() if own else torch.zeros((), device=engine.device)
    if engine.mpu is not None:
        dist.all_reduce(squares, group=engine.mpu.get_model_parallel_group())
    norm = squares.sqrt()
    factor = (engine.gradient_clipping() / (norm + 1e-6)).clamp(max=1.0)
    for _, gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
    engine._global_grad_norm = norm.item()


def _counts(engine: Any, parameter: torch.Tensor) -> bool:
    first = engine.mpu is None or engine.mpu.get_tensor_model_parallel_rank() == 0
    return not getattr(parameter, "ds_pipe_replicated", False) and (
        first or getattr(parameter, "model_parallel", False)
    )


def bind_norm(engine: Any, bindings: Bindings) -> None:
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
            return found
        short = [piece for gradient in found[0] for piece in pieces(gradient)]
        return short or [torch.zeros(1, device=engine.device)], found[1]

    bindings.bind(engine.optimizer, "get_grads_for_norm", get_grads_for_norm)
