"""Work on a large tensor piece by piece: several passes over a piece that stays in a core's cache cost about as much as one over
memory, and what they allocate is memory that was used a moment ago."""

from collections.abc import Iterator

from torch import Tensor

PIECE = 1 << 16
"""Elements."""


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of one-dimensional tensors of one size, side by side; on other devices than a CPU all at once."""
    size = len(tensors[0])
    step = PIECE if tensors[0].device.type == "cpu" else max(size, 1)
    for begin in range(0, size, step):
        yield tuple(tensor[begin : begin + step] for tensor in tensors)
