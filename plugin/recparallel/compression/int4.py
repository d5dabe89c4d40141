"""Four-bit integers with a scale for each block."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.base import Part, Payload
from recparallel.compression.blocks import BlockQuantizer


@dataclass(frozen=True, kw_only=True)
class Int4(BlockQuantizer):
    """Blockwise int4 with stochastic rounding: an eighth of the bytes of fp32.

    The error of an element is below 1/7 of the largest of its block; meant for error feedback (Xie et al., "LoCo: Low-Bit
    Communication Adaptor for Large-scale Model Training", 2024). Two integers of a block travel in a byte: one of its first half in
    the low bits, one of its second half in the high bits.

    Example:
        >>> Int4(block=64).payload_bytes(640, torch.float32)
        360
    """

    name = "int4"
    levels = 7

    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        blocks = self._num_blocks(size)
        return Part(blocks, torch.float32), Part(blocks * self.block // 2, torch.uint8)

    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        blocks, half = self._num_blocks(len(flat_N)), self.block // 2
        scales_B = torch.empty(blocks, dtype=torch.float32, device=flat_N.device)
        wire_BH = torch.empty(blocks, half, dtype=torch.uint8, device=flat_N.device)
        for first, integers_bW in self._quantized(flat_N, scales_B, seed=seed):
            low_bH, high_bH = integers_bW.split(half, dim=1)
            torch.bitwise_or(low_bH, high_bH << 4, out=wire_BH[first : first + len(integers_bW)])
        return scales_B, wire_BH.view(-1)

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        scales_B, wire = payload
        wire_BH = wire.view(len(scales_B), -1)
        step = self._step(total_N)
        for first in range(0, len(scales_B), step):
            bytes_bH = wire_BH[first : first + step]
            integers_bW = torch.cat([bytes_bH & 15, bytes_bH >> 4], dim=1).float().sub_(self.levels)
            self._add_scaled(integers_bW, scales_B[first : first + step], total_N, first, alpha)
