"""Numbers for stochastic rounding, drawn once: to draw one for every element would take longer than all else."""

import functools

import torch
from torch import Tensor

_LENGTH = 1 << 16

_MOST = 1 - 2**-14
"""An integer below 255 and this add up to a number of fp32 that is below the next integer, also where the integer is too large by
the rounding of a quotient."""


@functools.lru_cache(maxsize=8)
def _table(device: torch.device, offset: int) -> Tensor:
    """Twice the same numbers, so that a slice from anywhere is contiguous."""
    generator = torch.Generator().manual_seed(20)
    once = torch.rand(_LENGTH, generator=generator).clamp_(max=_MOST).add_(offset)
    return torch.cat([once, once]).to(device)


def dither(size: int, *, seed: int, offset: int, device: torch.device) -> Tensor:
    """``size`` numbers in [offset, offset + 1), from a place in a table that the seed gives: over seeds, each is uniform. Where the
    table is too short, they are drawn."""
    if size > _LENGTH:
        generator = torch.Generator(device=device).manual_seed(seed % 2**63)
        return torch.rand(size, generator=generator, device=device).clamp_(max=_MOST).add_(offset)
    begin = (seed * 0x9E3779B1 + 0x7F4A7C15) % _LENGTH
    return _table(device, offset)[begin : begin + size]
