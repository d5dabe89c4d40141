"""Integers with a scale for each block: what int8 and int4 share.

A gradient is worked on in pieces that fit into a core's cache: its passes over a piece then cost about as much as one pass over
memory. Shapes: N elements, B blocks, W a block's width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from recparallel.compression.base import Codec
from recparallel.compression.dither import dither
from recparallel.compression.options import check_integer
from recparallel.compression.pieces import PIECE


@dataclass(frozen=True, kw_only=True)
class BlockQuantizer(Codec):
    """Blockwise integers with stochastic rounding.

    For each block of ``block`` elements: ``s = max|g| / levels``, ``q = floor(g / s + u)`` with ``u`` uniform in [0, 1), so that
    ``E[s q] = g``. The error of an element is below ``s``. Decoding multiplies ``q`` by ``s``, which travels in fp32.

    Args:
        block: elements that share a scale.
    """

    block: int = 256
    aggregation = "two_hop"
    levels = 0
    """Largest integer."""

    def __post_init__(self) -> None:
        check_integer(self.name, "block", self.block, least=8, most=PIECE, multiple_of=8)

    @property
    def least(self) -> int:  # type: ignore[override]
        return self.block

    def _num_blocks(self, size: int) -> int:
        return -(-size // self.block)

    def _quantized(self, flat_N: Tensor, scales_B: Tensor, *, seed: int) -> Iterator[tuple[int, Tensor]]:
        """Pieces ``(first block, q + levels (b, W) in uint8)``; fills ``scales_B``. Above zero, to cut a fraction off is to round
        down."""
        step = self._step(flat_N)
        for number, first in enumerate(range(0, len(scales_B), step)):
            blocks_bW = self._blocks(flat_N, first, step)
            scale_b = blocks_bW.abs().amax(dim=1).mul_(1 / self.levels)
            scales_B[first : first + step] = scale_b
            inverse_b = scale_b.clamp_(min=torch.finfo(torch.float32).tiny).reciprocal_().clamp_(max=1e38)
            draw = seed + 7919 * number
            noise_bW = dither(blocks_bW.numel(), seed=draw, offset=self.levels, device=flat_N.device).view_as(blocks_bW)
            yield first, torch.addcmul(noise_bW, blocks_bW, inverse_b.unsqueeze(1)).to(torch.uint8)

    def _step(self, flat_N: Tensor) -> int:
        """Blocks of a piece; other devices than a CPU take all at once."""
        return max(1, PIECE // self.block) if flat_N.device.type == "cpu" else self._num_blocks(len(flat_N))

    def _blocks(self, flat_N: Tensor, first: int, step: int) -> Tensor:
        """Blocks (b, W) in fp32; the last is filled up with zeros."""
        piece = flat_N[first * self.block : (first + step) * self.block]
        missing = -len(piece) % self.block
        piece = functional.pad(piece, (0, missing)) if missing else piece
        return piece.float().view(-1, self.block)

    def _add_scaled(self, integers_bW: Tensor, scales_b: Tensor, total_N: Tensor, first: int, alpha: float) -> None:
        """Add a piece of blocks to the sum."""
        into = total_N[first * self.block : first * self.block + integers_bW.numel()]
        if len(into) == integers_bW.numel() and into.dtype == integers_bW.dtype:
            into.view_as(integers_bW).addcmul_(integers_bW, scales_b.unsqueeze(1), value=alpha)
        else:
            into.add_(integers_bW.mul_(scales_b.unsqueeze(1)).view(-1)[: len(into)], alpha=alpha)
