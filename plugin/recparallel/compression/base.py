"""What a codec is: a flat gradient to a payload of fixed size, and payloads back to their sum."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

Payload = tuple[Tensor, ...]
"""Contiguous one-dimensional tensors whose sizes and dtypes depend on the gradient's size and dtype alone, so that all ranks'
payloads match."""


class Part(NamedTuple):
    """One tensor of a payload."""

    length: int
    dtype: torch.dtype


class Codec(ABC):
    """A lossy or lossless code for flat gradients. Stateless: the same input and seed give the same payload.

    Attributes:
        name: in the config.
        aggregation: how payloads are summed unless the config says otherwise.
        least: elements of a gradient below which it is sent dense.
        same_seed: all ranks must draw the same numbers.
        exact_sums: adding payloads, element by element, is as good as adding what they stand for.
    """

    name: ClassVar[str]
    aggregation: ClassVar[str] = "gathered"
    least: int = 1
    same_seed: ClassVar[bool] = False
    exact_sums: ClassVar[bool] = False

    @abstractmethod
    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        """Of the payload of a gradient of ``size`` elements; known before encoding."""

    @abstractmethod
    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        """The payload of a flat gradient (N,), N at least 1, of any floating type. One in which nothing is finite decodes to
        something that is not finite.

        Args:
            seed: of what is drawn at random; the random state of torch is not touched.
        """

    @abstractmethod
    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        """Add ``alpha`` times what ``payload`` stands for to ``total_N`` (N,), in place."""

    def warming_up(self, share: float) -> "Codec":
        """The codec after this share of the warm-up, in [0, 1]. Override for one whose ratio can start near 1."""
        return self

    def payload_bytes(self, size: int, dtype: torch.dtype) -> int:
        """Of the payload of a gradient of ``size`` elements, as it travels: known before encoding."""
        return sum(padded_bytes(part) for part in self.layout(size, dtype))


_ALIGNED = 8


def padded_bytes(part: Part) -> int:
    """Bytes of a part of a payload on its way: a multiple of eight, so that each part can be read in place."""
    return -(-part.length * part.dtype.itemsize // _ALIGNED) * _ALIGNED
