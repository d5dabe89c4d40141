"""Keep elements above a threshold that a sample gives."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.sparse import Sparsifier

_SAMPLE = 1 << 14
"""Elements that the threshold is estimated from."""

_MORE = 1.25
"""How many candidates are aimed at, of those that are sent."""

_PIECE, _ROWS = 1 << 17, 8
"""Elements that are looked through at a time, so that they stay in a core's cache, and the rows they are folded to."""


@dataclass(frozen=True, kw_only=True)
class TopKThreshold(Sparsifier):
    """Top-k by an estimated threshold: about one pass over the gradient, where ``torch.topk`` takes many. On a CPU; other devices
    sort.

    1. The threshold is that of a sample of 16,384 elements, set low: about 1.25 k elements are above it.
    2. Elements above it are the candidates. Piece by piece the gradient is folded to 8 rows, and only columns whose largest element
       is above are looked at.
    3. More than k candidates: the k largest of them, which is the exact top-k. Fewer: the rest is drawn from all elements, by
       ``torch.topk`` of what is below.

    So ``top_k``'s error bound holds. The idea of the sample: Lin et al., "Deep Gradient Compression", ICLR 2018, section 3.

    Example:
        >>> import torch
        >>> TopKThreshold(ratio=0.5).select(torch.tensor([0.1, -3.0, 2.0, 0.0])).sort().values.tolist()
        [1, 2]
    """

    name = "top_k_threshold"

    def select(self, flat_N: Tensor, *, seed: int = 0) -> Tensor:
        size, kept = len(flat_N), self.num_kept(len(flat_N))
        if size < 4 * _SAMPLE or self.ratio > 1 / _MORE / 2 or flat_N.device.type != "cpu":
            return torch.topk(flat_N.abs(), kept, sorted=False).indices
        candidates = _above(flat_N, self._threshold(flat_N, seed))
        if len(candidates) < kept:
            return torch.topk(flat_N.abs(), kept, sorted=False).indices
        chosen = torch.topk(flat_N[candidates].abs(), kept, sorted=False).indices
        return candidates[chosen]

    def _threshold(self, flat_N: Tensor, seed: int) -> Tensor:
        stride = len(flat_N) // _SAMPLE
        sample = flat_N[seed % stride :: stride].abs()
        rank = max(1, min(len(sample), round(_MORE * self.ratio * len(sample))))
        return torch.topk(sample, rank, sorted=True).values[-1]


def _above(flat_N: Tensor, threshold: Tensor) -> Tensor:
    """Positions of elements whose magnitude is not below the threshold, NaN among them."""
    return torch.cat([_above_in(piece_N, threshold).add_(n * _PIECE) for n, piece_N in enumerate(flat_N.split(_PIECE))])


def _above_in(piece_N: Tensor, threshold: Tensor) -> Tensor:
    """The same of a piece, in whatever order."""
    magnitude_N, width = piece_N.abs(), len(piece_N) // _ROWS
    rows_RW, rest = magnitude_N[: width * _ROWS].view(_ROWS, width), magnitude_N[width * _ROWS :]
    columns = (~(rows_RW.amax(dim=0) < threshold)).nonzero().view(-1)
    row, column = (~(rows_RW.index_select(1, columns) < threshold)).nonzero(as_tuple=True)
    found = columns[column].add_(row, alpha=width)
    return torch.cat([found, (~(rest < threshold)).nonzero().view(-1).add_(width * _ROWS)])
