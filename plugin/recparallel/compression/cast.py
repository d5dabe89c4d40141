"""Send gradients in half precision."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.base import Codec, Part, Payload
from recparallel.compression.pieces import pieces
from recparallel.compression.wire import Cast, Float16, WireFormat


class _AsOnTheWire(Codec):
    """A wire format as a codec: halves the bytes of fp32."""

    aggregation = "two_hop"

    @property
    @abstractmethod
    def _format(self) -> WireFormat:
        """That gradients travel in."""

    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        return (Part(self._format.numbers((size,)), self._format.dtype),)

    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        return (self._format.encode(flat_N),)


@dataclass(frozen=True, kw_only=True)
class BFloat16Codec(_AsOnTheWire):
    """Rounds to bf16: a relative error of at most 2^-8 for each element, over the range of fp32.

    Example:
        >>> BFloat16Codec().payload_bytes(100, torch.float32)
        200
    """

    name = "bf16"

    @property
    def _format(self) -> WireFormat:
        return Cast(torch.bfloat16)

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        for wire, total in pieces(payload[0], total_N):
            total.add_(wire.to(total.dtype), alpha=alpha)


@dataclass(frozen=True, kw_only=True)
class Float16Codec(_AsOnTheWire):
    """Rounds to fp16, scaled by a power of two so that the largest element is near the largest fp16: a relative error of at most
    2^-11, for elements down to 2^-28 of the largest.

    Example:
        >>> Float16Codec().payload_bytes(100, torch.float32)
        208
    """

    name = "fp16"

    @property
    def _format(self) -> WireFormat:
        return Float16()

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        wire_N, factor = payload[0][:-1], Float16.factor(payload[0])
        for wire, total in pieces(wire_N, total_N):
            total.add_(wire.to(total.dtype).mul_(factor), alpha=alpha)
