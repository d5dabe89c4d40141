"""What the optimizer's update of a layer costs: AdamW on fp32 weights in one pass, with the cast to the layer's own type."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from recparallel.profiling.steady import steady_passes


@dataclass(frozen=True)
class UpdateCost:
    """Seconds of one update, and the bytes that the optimizer keeps: moments, and fp32 weights beside half-precision ones."""

    seconds: float = 0.0
    state_bytes: int = 0


def measure_update(module: nn.Module, repeats: int, clock: Callable[[], float]) -> UpdateCost:
    """Update copies of the module's parameters.

    Args:
        module: its parameters are read only.
        repeats: timed updates, of which the median counts; one before them allocates.
        clock: seconds.
    """
    own = [p for p in module.parameters() if p.requires_grad]
    if not own:
        return UpdateCost()
    masters = [nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in own]
    lower = [torch.empty_like(p) for p in own if p.dtype != torch.float32]
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = torch.optim.AdamW(masters, fused=True)

    def update() -> float:
        start = _synchronized(clock, masters[0])
        optimizer.step()
        for target, master in zip(lower, masters):
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
