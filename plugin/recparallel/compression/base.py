"""What a codec is: a flat gradient to a payload of fixed size, and payloads back to their sum."""

from abc import ABC, abstractmethod

from torch import Tensor

Payload = tuple[Tensor, ...]
"""Contiguous tensors whose shapes and dtypes depend on the gradient's size and dtype alone, so that all ranks'
payloads match."""


class Codec(ABC):
    """A lossy or lossless code for flat gradients. Stateless: the same input gives the same payload."""

    name: str

    @abstractmethod
    def encode(self, flat_N: Tensor) -> Payload:
        """The payload of a flat gradient (N,)."""

    @abstractmethod
    def add_decoded(self, payload: Payload, total_N: Tensor) -> None:
        """Add what ``payload`` stands for to ``total_N`` (N,), in place."""

    @abstractmethod
    def payload_bytes(self, num_elements: int, element_size: int) -> int:
        """Size of the payload of a gradient of ``num_elements``, each of ``element_size`` bytes; known before
        encoding."""
