"""Eight-bit integers with a scale for each block."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.base import Part, Payload
from recparallel.compression.blocks import BlockQuantizer


@dataclass(frozen=True, kw_only=True)
class Int8(BlockQuantizer):
    """Blockwise int8 with stochastic rounding: a quarter of the bytes of fp32.

    The error of an element is below 1/127 of the largest of its block (Alistarh et al., "QSGD", NeurIPS 2017, with the largest
    element as the scale, as in Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022).

    Example:
        >>> Int8(block=64).payload_bytes(640, torch.float32)
        680
    """

    name = "int8"
    levels = 127

    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        return Part(self._num_blocks(size), torch.float32), Part(size, torch.int8)

    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        size = len(flat_N)
        scales_B = torch.empty(self._num_blocks(size), dtype=torch.float32, device=flat_N.device)
        wire_N = torch.empty(size, dtype=torch.int8, device=flat_N.device)
        for first, integers_bW in self._quantized(flat_N, scales_B, seed=seed):
            into = wire_N[first * self.block : first * self.block + integers_bW.numel()]
            into.copy_(integers_bW.sub_(self.levels).view(torch.int8).view(-1)[: len(into)])
        return scales_B, wire_N

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        scales_B, wire_N = payload
        step = self._step(total_N)
        for first in range(0, len(scales_B), step):
            self._add_scaled(self._blocks(wire_N, first, step), scales_B[first : first + step], total_N, first, alpha)
