"""What a tensor is while it crosses a boundary between two stages: fewer bytes, and as many numbers.

A format is added as a class here and by a line in :data:`WIRE_FORMATS`. bf16 has 8 bits of precision and the range of fp32,
fp16 has 11 bits and too small a range for gradients as they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

_LARGEST = 15
"""fp16 holds numbers below 2^16."""

_SMALLEST = -100
"""Exponent of the smallest tensor that is scaled up to the range of fp16; a smaller one stays as far below it."""


class WireFormat(Protocol):
    """How a tensor travels: as ``numbers`` values of ``dtype``."""

    dtype: torch.dtype

    def numbers(self, shape: Sequence[int]) -> int:
        """That travel for a tensor of this shape."""

    def encode(self, tensor: Tensor) -> Tensor:
        """One-dimensional, of :attr:`dtype`, contiguous."""

    def decode(self, wire: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The tensor again, in memory that nothing else uses; what was NaN or inf still is."""


class Cast:
    """In another type, or in its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def numbers(self, shape: Sequence[int]) -> int:
        return _count(shape)

    def encode(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).contiguous().view(-1)

    def decode(self, wire: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return wire.to(dtype).view(torch.Size(shape))


class Float16:
    """Rounded to fp16: 11 bits of precision. The tensor is scaled by a power of two, so that its largest number is near the largest
    of fp16, and the exponent travels behind it: neither do activations overflow nor gradients vanish, down to 2^-39 of the largest.
    """

    dtype = torch.float16

    def numbers(self, shape: Sequence[int]) -> int:
        return _count(shape) + 1

    def encode(self, tensor: Tensor) -> Tensor:
        flat = tensor.contiguous().view(-1)
        largest = flat.abs().max() if len(flat) else flat.new_zeros(())
        exponent = torch.frexp(largest).exponent.clamp(min=_SMALLEST)
        exponent = torch.where(torch.isfinite(largest), exponent, _LARGEST)
        wire = torch.empty(len(flat) + 1, dtype=self.dtype, device=flat.device)
        # A product with a power of two is exact, as ldexp of the whole would be, and many times as fast.
        wire[:-1] = flat * torch.ldexp(flat.new_ones(()), _LARGEST - exponent)
        wire[-1] = exponent
        return wire

    def decode(self, wire: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return (wire[:-1].to(dtype) * self.factor(wire)).view(torch.Size(shape))

    @staticmethod
    def factor(wire: Tensor) -> Tensor:
        """A power of two, in fp32: what the numbers of ``wire`` are to be multiplied with."""
        return torch.ldexp(torch.ones((), device=wire.device), wire[-1].to(torch.int32) - _LARGEST)


WIRE_FORMATS: dict[str, Callable[[], WireFormat]] = {"bf16": partial(Cast, torch.bfloat16), "fp16": Float16}
"""By name in the config; beside them there is ``same``."""


def wire_format(name: str, dtype: torch.dtype) -> WireFormat:
    """The format of this name for tensors of ``dtype``: integers and half precision, and under ``same`` all, cross as they are."""
    if name == "same" or not dtype.is_floating_point or dtype.itemsize <= 2:
        return Cast(dtype)
    return WIRE_FORMATS[name]()


def crossing_bytes(name: str, count: int, dtype: torch.dtype) -> int:
    """That ``count`` numbers of ``dtype`` take on their way under the format of this name."""
    form = wire_format(name, dtype)
    return form.numbers((count,)) * form.dtype.itemsize


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
