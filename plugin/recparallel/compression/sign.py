"""One bit an element, and one scale for all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.base import Codec, Part, Payload
from recparallel.compression.pieces import pieces

_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    """Signs with the mean magnitude as their scale.

    1. ``s = ‖g‖₁ / N``.
    2. Send the sign of each element, one bit, and ``s``.
    3. Decoding gives ``± s``.

    With error feedback it converges as SGD does (Karimireddy et al., ICML 2019: a δ-approximate compressor with
    ``δ = ‖g‖₁² / (N ‖g‖₂²)``); without, it need not. Element ``i`` is bit ``i // M`` of byte ``i mod M``, ``M = ceil(N / 8)``.

    Example:
        >>> scale, bits = Sign().encode(torch.tensor([1.0, -3.0]))
        >>> scale.item(), bits.item()
        (2.0, 1)
    """

    name = "sign"
    aggregation = "two_hop"
    least = 64

    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        return Part(1, torch.float32), Part(-(-size // _BITS), torch.uint8)

    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        total = sum(piece.float().abs().sum() for (piece,) in pieces(flat_N))
        scale = torch.as_tensor(total, device=flat_N.device) / len(flat_N)
        wire_M = torch.zeros(-(-len(flat_N) // _BITS), dtype=torch.uint8, device=flat_N.device)
        for bit, plane in enumerate(flat_N.split(len(wire_M))):
            wire_M[: len(plane)] |= (plane >= 0).to(torch.uint8) << bit
        return scale.view(1), wire_M

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        scale, wire_M = payload[0] * alpha, payload[1]
        for bit, plane in enumerate(total_N.split(len(wire_M))):
            signs = ((wire_M[: len(plane)] >> bit) & 1).to(plane.dtype)
            plane.add_(signs.mul_(2 * scale).sub_(scale))
