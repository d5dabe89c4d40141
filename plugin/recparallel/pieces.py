"""Cast long vectors piece by piece: what is made of one on a CPU stays in its caches until it is used up."""

from collections.abc import Sequence

import torch
from torch import Tensor

_NUMBERS = 2**17


def pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Short one-dimensional views of a contiguous half-precision ``tensor`` of any shape, in order; one that is in fp32 already,
    or on another device than a CPU, is itself its only piece.

    Example:
        >>> import torch
        >>> [len(piece) for piece in pieces(torch.zeros(2, 100_000, dtype=torch.bfloat16))]
        [131072, 68928]
    """
    if tensor.device.type != "cpu" or tensor.dtype == torch.float32:
        return (tensor,)
    return tensor.view(-1).split(_NUMBERS)
