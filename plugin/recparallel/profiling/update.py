"""What the optimizer's update of a layer costs: AdamW on fp32 weights in one pass, and what half-precision weights need beside."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from recparallel.models.layers import ItemEmbedding
from recparallel.models.row_gradients import nonzero_rows
from recparallel.optimizers.idle_steps import AdamWSettings
from recparallel.optimizers.row_adamw import RowAdamW
from recparallel.pieces import pieces
from recparallel.profiling.steady import steady_passes
from recparallel.profiling.sums import PLAIN_SUMS, GradientSums


@dataclass(frozen=True)
class UpdateCost:
    """Seconds of one update, and the bytes that the optimizer needs: moments, and beside half-precision weights fp32 ones, with
    gradients in fp32 while they are applied."""

    seconds: float = 0.0
    state_bytes: int = 0


def measure_update(
    module: nn.Module,
    repeats: int,
    clock: Callable[[], float],
    *,
    tied: bool = False,
    sums: GradientSums = PLAIN_SUMS,
    touched: torch.Tensor | None = None,
) -> UpdateCost:
    """Update copies of the module's parameters, and do what DeepSpeed and we do once a step beside it.

    - Of half-precision weights the gradient's norm is taken, it is cast to fp32 unless it is that already, and cleared, and the
      weights are cast.
    - The rows of a tied table are searched that are not zero, as they travel.
    - A full-precision table of which look-ups keep the gradient by rows is given one.

    Args:
        module: its parameters are read only.
        repeats: timed updates, of which the median counts; one before them allocates.
        clock: seconds.
        tied: the weights are a table that other layers share.
        sums: how gradients were added up.
        touched: rows of the one weight that a micro-batch touches, where it is updated by rows.
    """
    if touched is not None:
        return _measure_rows(module, touched, repeats, clock)
    own = [p for p in module.parameters() if p.requires_grad]
    if not own:
        return UpdateCost()
    masters = [nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in own]
    gradients = [torch.zeros_like(master) for master in masters]
    for master, gradient in zip(masters, gradients):
        master.grad = gradient
    halves = [pair for pair, p in zip(zip(masters, gradients), own) if p.dtype != torch.float32]
    lower = [torch.zeros_like(p) for p in own if p.dtype != torch.float32]
    sent = gradients if sums.fp32 or not lower else lower
    by_rows = sums.rows and isinstance(module, ItemEmbedding) and not lower
    optimizer = torch.optim.AdamW(masters, fused=True)

    def update() -> float:
        start = _synchronized(clock, masters[0])
        if by_rows:
            torch.zeros_like(masters[0])
        if tied and sent[0].dim() == 2:
            nonzero_rows(sent[0])
        if halves:
            for gradient in sent:
                for piece in pieces(gradient):
                    piece.float().norm()
        if not sums.fp32:
            for (_, gradient), low in zip(halves, lower):
                gradient.copy_(low)
        optimizer.step()
        for target, (master, _) in zip(lower, halves):
            target.copy_(master.detach())
        if halves:
            torch._foreach_zero_(sent)
        return _synchronized(clock, masters[0]) - start

    seconds = steady_passes(update, repeats=repeats, warmup=1)
    state = sum(
        t.numel() * t.element_size() for kept in optimizer.state.values() for t in kept.values() if t.numel() > 1
    )
    copies = 4 if sums.fp32 else 8  # fp32 weights, and gradients that are cast for the update
    return UpdateCost(statistics.median(seconds), state + copies * sum(t.numel() for t in lower))


def _measure_rows(module: nn.Module, touched: torch.Tensor, repeats: int, clock: Callable[[], float]) -> UpdateCost:
    table = next(module.parameters()).detach().clone()
    optimizer = RowAdamW(table)
    gradient = torch.ones(len(touched), table.shape[1], device=table.device)
    settings = AdamWSettings(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

    def update() -> float:
        start = _synchronized(clock, table)
        optimizer.step(touched, gradient, settings)
        return _synchronized(clock, table) - start

    return UpdateCost(statistics.median(steady_passes(update, repeats=repeats, warmup=1)), optimizer.state_bytes)


def _synchronized(clock: Callable[[], float], tensor: torch.Tensor) -> float:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize(tensor.device)
    return clock()
