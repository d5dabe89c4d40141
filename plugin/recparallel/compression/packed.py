"""A payload as one row of bytes, so that it travels in one message."""

import torch
from torch import Tensor

from recparallel.compression.base import Part, Payload, padded_bytes


def pack_into(payload: Payload, wire_B: Tensor) -> None:
    """Write a payload into ``wire_B`` (B,), uint8, as long as the payload is on its way."""
    begin = 0
    for tensor in payload:
        end = begin + tensor.numel() * tensor.element_size()
        wire_B[begin:end] = tensor.view(torch.uint8)
        begin += padded_bytes(Part(tensor.numel(), tensor.dtype))
    assert begin == len(wire_B)


def unpack(wire_B: Tensor, layout: tuple[Part, ...]) -> Payload:
    """The payload in ``wire_B`` (B,), as views."""
    parts, begin = [], 0
    for part in layout:
        parts.append(wire_B[begin : begin + part.length * part.dtype.itemsize].view(part.dtype))
        begin += padded_bytes(part)
    return tuple(parts)
