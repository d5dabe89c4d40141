"""Keep the entries of largest magnitude."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.base import Codec, Payload
from recparallel.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TopK(Codec):
    """Exact top-k sparsification.

    1. ``k = ceil(ratio · N)``.
    2. Send the ``k`` entries of largest ``|g|`` and their positions; ties are broken by ``torch.topk``, on each rank
       for itself.
    3. Decoding puts them back, and zero elsewhere.

    The error is the norm of what was left out, at most ``sqrt(1 - k / N) · ‖g‖``; with error feedback the sum over
    time converges (Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018; error bound: Definition
    2.1).

    Args:
        ratio: share of entries kept, in (0, 1].

    Raises:
        ConfigError: ratio is no number, or out of range.

    Example:
        >>> import torch
        >>> values, positions = TopK(ratio=0.5).encode(torch.tensor([0.1, -3.0, 2.0, 0.0]))
        >>> positions.sort().values.tolist()
        [1, 2]
    """

    ratio: float = 0.01
    name = "top_k"

    def __post_init__(self) -> None:
        if not isinstance(self.ratio, (int, float)) or not 0.0 < self.ratio <= 1.0:
            raise ConfigError(
                f"top_k: ratio must be a number in (0, 1], got {self.ratio!r} (recparallel.compression.ratio)"
            )

    def encode(self, flat_N: Tensor) -> Payload:
        positions = torch.topk(flat_N.abs(), self._num_kept(flat_N.numel()), sorted=False).indices
        return flat_N[positions], positions.to(_position_dtype(flat_N.numel()))

    def add_decoded(self, payload: Payload, total_N: Tensor) -> None:
        values, positions = payload
        total_N.index_add_(0, positions.long(), values.to(total_N.dtype))

    def payload_bytes(self, num_elements: int, element_size: int) -> int:
        return self._num_kept(num_elements) * (element_size + _position_dtype(num_elements).itemsize)

    def _num_kept(self, num_elements: int) -> int:
        return max(1, math.ceil(self.ratio * num_elements))


def _position_dtype(num_elements: int) -> torch.dtype:
    return torch.int64 if num_elements > torch.iinfo(torch.int32).max else torch.int32
