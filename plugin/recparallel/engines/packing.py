"""Tensors of several kinds in one message: one flat tensor of bytes, and a description that travels ahead of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNED = 16
"""Every tensor begins at a multiple of so many bytes, which suits every dtype."""


@dataclass(frozen=True)
class _Field:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int

    @property
    def end(self) -> int:
        return self.begin + torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Description:
    """Where each tensor lies in the message.

    Attributes:
        fields: in order.
        num_bytes: of the message.
    """

    fields: tuple[_Field, ...]
    num_bytes: int

    def empty(self, device: torch.device) -> Tensor:
        """A message to receive into: (num_bytes,), uint8."""
        return torch.empty(self.num_bytes, dtype=torch.uint8, device=device)


def describe(tensors: Mapping[str, Tensor]) -> Description:
    """How :func:`pack` lays these tensors out.

    Example:
        >>> describe({"a": torch.ones(3), "b": torch.ones(2)}).num_bytes
        32
    """
    fields, begin = [], 0
    for name, tensor in tensors.items():
        fields.append(_Field(name, tuple(tensor.shape), tensor.dtype, begin))
        begin = -(-fields[-1].end // _ALIGNED) * _ALIGNED
    return Description(tuple(fields), begin)


def pack(tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The tensors in one message: (num_bytes,), uint8, on ``device``."""
    description = describe(tensors)
    message = description.empty(device)
    for field in description.fields:
        _view(message, field).copy_(tensors[field.name])
    return message


def unpack(message: Tensor, description: Description) -> dict[str, Tensor]:
    """The tensors, as views of the message; numbers without a shape are copied to the host.

    Example:
        >>> tensors = {"weight": torch.ones(2, 2), "step": torch.tensor(7)}
        >>> found = unpack(pack(tensors, torch.device("cpu")), describe(tensors))
        >>> found["weight"].tolist(), found["step"].item()
        ([[1.0, 1.0], [1.0, 1.0]], 7)
    """
    views = {field.name: _view(message, field) for field in description.fields}
    return {name: view if view.dim() else view.to("cpu", copy=True) for name, view in views.items()}


def _view(message: Tensor, field: _Field) -> Tensor:
    return message[field.begin : field.end].view(field.dtype).view(field.shape)
