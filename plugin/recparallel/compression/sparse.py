"""What codecs share that send some of the elements with their positions."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from recparallel.compression.base import Codec, Part, Payload
from recparallel.compression.options import check_ratio


@dataclass(frozen=True, kw_only=True)
class Sparsifier(Codec):
    """Sends ``k = ceil(ratio · N)`` elements as ``(values (k,), positions (k,))``. Decoding puts them back, and zero elsewhere.

    Args:
        ratio: share of elements that are sent, in (0, 1].

    Raises:
        ConfigError: ratio is no number, or out of range.
    """

    ratio: float = 0.01
    aggregation = "sparse"

    def __post_init__(self) -> None:
        check_ratio(self.name, self.ratio)

    @abstractmethod
    def select(self, flat_N: Tensor, *, seed: int = 0) -> Tensor:
        """Positions (k,) of what is sent, int64, in any order, none twice."""

    def num_kept(self, size: int) -> int:
        """Elements that are sent of ``size``."""
        return max(1, math.ceil(self.ratio * size))

    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        kept = self.num_kept(size)
        return Part(kept, dtype), Part(kept, position_dtype(size))

    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        positions = self.select(flat_N, seed=seed)
        return flat_N[positions], positions.to(position_dtype(len(flat_N)))

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0) -> None:
        values, positions = payload
        total_N.index_add_(0, positions.long(), values.to(total_N.dtype))

    def warming_up(self, share: float) -> Self:
        """The ratio falls from 1 to its own by equal factors (Lin et al., "Deep Gradient Compression", ICLR 2018, section 3.3)."""
        return self if share >= 1 else replace(self, ratio=self.ratio**share)


def position_dtype(size: int) -> torch.dtype:
    """Of positions in a gradient of ``size`` elements."""
    return torch.int64 if size > torch.iinfo(torch.int32).max else torch.int32
