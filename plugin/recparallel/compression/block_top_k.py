"""Keep the blocks of largest norm."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from recparallel.compression.base import Part, Payload
from recparallel.compression.options import check_integer
from recparallel.compression.ratio import RatioCodec


@dataclass(frozen=True, kw_only=True)
class BlockTopK(RatioCodec):
    """Top-k by blocks: of blocks of ``block`` neighbours, the ``k = ceil(ratio · B)`` of largest ‖·‖₂ travel whole, each with one
    number: less to find, to send and to put back than for elements that are chosen one by one, and more energy left out.

    The error is at most ``sqrt(1 - k / B) · ‖g‖`` (block sparsification: Vogels, Karimireddy & Jaggi, "PowerSGD", NeurIPS 2019,
    appendix on random blocks, with the largest instead of random ones).

    Args:
        ratio: share of blocks that are sent, in (0, 1].
        block: neighbours in a block.

    Raises:
        ConfigError: an option is out of range.

    Example:
        >>> import torch
        >>> blocks, numbers = BlockTopK(ratio=0.5, block=8).encode(torch.arange(16.0))
        >>> numbers.tolist()
        [1]
    """

    block: int = 64
    name = "block_top_k"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self.name, "block", self.block, least=2)

    @property
    def least(self) -> int:  # type: ignore[override]
        return self.block

    def layout(self, size: int, dtype: torch.dtype) -> tuple[Part, ...]:
        kept = self._num_blocks_kept(size)
        return Part(kept * self.block, dtype), Part(kept, torch.int32)

    def encode(self, flat_N: Tensor, *, seed: int = 0) -> Payload:
        blocks_BW = functional.pad(flat_N, (0, -len(flat_N) % self.block)).view(-1, self.block)
        norms_B = torch.linalg.vector_norm(blocks_BW.float(), dim=1)
        numbers = torch.topk(norms_B, self._num_blocks_kept(len(flat_N)), sorted=False).indices
        return blocks_BW[numbers].view(-1), numbers.to(torch.int32)

    def add_decoded(self, payload: Payload, total_N: Tensor, *, seed: int = 0, alpha: float = 1.0) -> None:
        values, numbers = payload
        blocks, whole = values.view(-1, self.block).to(total_N.dtype), len(total_N) // self.block
        numbers = numbers.long()
        full = numbers < whole
        total_N[: whole * self.block].view(whole, self.block).index_add_(0, numbers[full], blocks[full], alpha=alpha)
        for last in blocks[~full]:
            total_N[whole * self.block :].add_(last[: len(total_N) - whole * self.block], alpha=alpha)

    def _num_blocks_kept(self, size: int) -> int:
        return self.num_kept(-(-size // self.block))
