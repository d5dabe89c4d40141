"""What codecs share that send some of the elements with their positions."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.base import Part, Payload
from recparallel.compression.ratio import RatioCodec


@dataclass(frozen=True, kw_only=True)
class Sparsifier(RatioCodec):
    """Sends ``k = ceil(ratio · N)`` elements as ``(values (k,), positions (k,))``. Decoding puts them back, and zero elsewhere."""

    aggregation = "sparse"

    @abstractmethod
    def select(self, flat_N: Tensor, *, seed: int = 0) -> Tensor:
        """Positions (k,) of what is sent, int64, in any order, none twice."""

    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        kept = self.num_kept(size)
        return Part(kept, dtype), Part(kept, position_dtype(size))

    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        positions = self.select(flat_N, seed=seed)
        return flat_N[positions], positions.to(position_dtype(len(flat_N)))

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        values, positions = payload
        total_N.index_add_(0, positions.long(), values.to(total_N.dtype), alpha=alpha)


def position_dtype(size: int) -> torch.dtype:
    """Of positions in a gradient of ``size`` elements."""
    return torch.int64 if size > torch.iinfo(torch.int32).max else torch.int32
