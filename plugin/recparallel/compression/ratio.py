"""What codecs share that send a share of something: elements, or blocks."""

import math
from dataclasses import dataclass, replace

from typing_extensions import Self

from recparallel.compression.base import Codec
from recparallel.compression.options import check_ratio


@dataclass(frozen=True, kw_only=True)
class RatioCodec(Codec):
    """Sends ``k = ceil(ratio · n)`` of n.

    Args:
        ratio: share that is sent, in (0, 1].

    Raises:
        ConfigError: ratio is no number, or out of range.
    """

    ratio: float = 0.01

    def __post_init__(self) -> None:
        check_ratio(self.name, self.ratio)

    def num_kept(self, size: int) -> int:
        """That are sent of ``size``."""
        return max(1, math.ceil(self.ratio * size))

    def warming_up(self, share: float) -> Self:
        """The ratio falls from 1 to its own by equal factors (Lin et al., "Deep Gradient Compression", ICLR 2018, section 3.3)."""
        return self if share >= 1 else replace(self, ratio=self.ratio**share)
