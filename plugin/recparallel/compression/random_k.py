"""Keep random elements, the same ones on every rank."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.base import Part, Payload
from recparallel.compression.ratio import RatioCodec


@dataclass(frozen=True, kw_only=True)
class RandomK(RatioCodec):
    """Random-k sparsification with a seed that all ranks share: no positions travel, and values can be summed as they are.

    The gradient, turned by a random offset, is cut into ``k = ceil(ratio · N)`` stretches of equal length, and of each one element
    is drawn: every element is as likely, none comes twice. The squared error is ``(1 - k / N) · ‖g‖²`` in the mean (Stich,
    Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018, Definition 2.1); meant for error feedback, as values are not
    scaled up.

    Args:
        ratio: share of elements that are sent, in (0, 1].

    Raises:
        ConfigError: ratio is no number, or out of range.

    Example:
        >>> import torch
        >>> RandomK(ratio=1.0).encode(torch.tensor([1.0, 2.0]))[0].tolist()
        [1.0, 2.0]
    """

    name = "random_k"
    aggregation = "reduced"
    same_seed = True
    exact_sums = True

    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        return (Part(self.num_kept(size), dtype),)

    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        return (flat_N[self._positions(len(flat_N), seed, flat_N.device)],)

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        positions = self._positions(len(total_N), seed, total_N.device)
        total_N.index_add_(0, positions, payload[0].to(total_N.dtype), alpha=alpha)

    def _positions(self, size: int, seed: int, device: torch.device) -> Tensor:
        kept = self.num_kept(size)
        edges = torch.arange(kept + 1, dtype=torch.int64) * size // kept
        generator = torch.Generator().manual_seed(seed % 2**63)
        drawn = torch.rand(kept + 1, dtype=torch.float64, generator=generator)
        offset = (drawn[-1] * size).long()
        return ((edges[:-1] + (drawn[:-1] * edges.diff()).long() + offset) % size).to(device)
