"""What the optimizer's update of a layer costs: AdamW on fp32 weights in one pass, and what half-precision weights need beside."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from recparallel.models.layers import ItemEmbedding
from recparallel.pieces import pieces
from recparallel.profiling.steady import steady_passes
from recparallel.profiling.sums import PLAIN_SUMS, GradientSums


@dataclass(frozen=True)
class UpdateCost:
    """Seconds of one update, and the bytes that the optimizer keeps: moments, and fp32 weights beside half-precision ones."""

    seconds: float = 0.0
    state_bytes: int = 0


def measure_update(
    module: nn.Module, repeats: int, clock: Callable[[], float], *, sums: GradientSums = PLAIN_SUMS
) -> UpdateCost:
    """Update copies of the module's parameters.

    Of half-precision weights the gradient's norm is taken before it, and the gradient is cast and cleared, unless it is in fp32
    already; behind it the weights are cast, as DeepSpeed does.

    Args:
        module: its parameters are read only.
        repeats: timed updates, of which the median counts; one before them allocates.
        clock: seconds.
        sums: how gradients were added up; a full-precision table that got none by then is given one.
    """
    own = [p for p in module.parameters() if p.requires_grad]
    if not own:
        return UpdateCost()
    masters = [nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in own]
    lower = [torch.zeros_like(p) for p in own if p.dtype != torch.float32]
    copies = [] if sums.fp32 else [torch.zeros_like(low) for low in lower]
    by_rows = sums.rows and isinstance(module, ItemEmbedding) and not lower
    for master in masters:
        master.grad = torch.zeros_like(master)
    halves = [master for master, p in zip(masters, own) if p.dtype != torch.float32]
    optimizer = torch.optim.AdamW(masters, fused=True)

    def update() -> float:
        start = _synchronized(clock, masters[0])
        if by_rows:
            torch.zeros_like(masters[0])
        for master, copy in zip(halves, copies):
            copy.zero_()
            for piece in pieces(copy):
                piece.float().norm()
            master.grad.copy_(copy)  # type: ignore[union-attr]
        optimizer.step()
        for target, master in zip(lower, halves):
            target.copy_(master.detach())
        return _synchronized(clock, masters[0]) - start

    seconds = steady_passes(update, repeats=repeats, warmup=1)
    state = sum(
        t.numel() * t.element_size() for kept in optimizer.state.values() for t in kept.values() if t.numel() > 1
    )
    return UpdateCost(statistics.median(seconds), state + 4 * sum(t.numel() for t in lower))


def _synchronized(clock: Callable[[], float], tensor: torch.Tensor) -> float:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize(tensor.device)
    return clock()
