"""Work on long vectors piece by piece: what is made of one on a CPU stays in its caches until it is used up."""

from collections.abc import Sequence

from torch import Tensor

_NUMBERS = 2**17


def pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Short one-dimensional views of a contiguous ``tensor`` of any shape, in order; on another device than a CPU itself alone.

    Example:
        >>> import torch
        >>> [len(piece) for piece in pieces(torch.zeros(2, 100_000))]
        [131072, 68928]
    """
    if tensor.device.type != "cpu":
        return (tensor,)
    return tensor.view(-1).split(_NUMBERS)
