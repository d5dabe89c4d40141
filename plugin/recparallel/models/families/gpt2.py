"""GPT-2: learned positions, added between the embedding and the first block, and no rotary table."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from recparallel.errors import ConfigError
from recparallel.models.layer import Layer
from recparallel.models.layers import TrunkPart
from recparallel.models.trunk import Trunk
from recparallel.tensor_parallel.block import BlockPlan, Segment


class PositionEmbedding(TrunkPart):
    """Add the learned position vectors: (B, L, D) to (B, L, D), L at most ``n_positions``."""

    def __init__(self, *, config: PretrainedConfig, path: str) -> None:
        super().__init__(config=config, path=path)
        self.dropout = nn.Dropout(config.embd_pdrop)
        self.max_length: int = config.n_positions

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        length = hidden_BLD.shape[1]
        if length > self.max_length:
            raise ConfigError(f"histories of {length} positions, but this GPT-2 has n_positions={self.max_length}")
        return self.dropout(hidden_BLD + self.part(torch.arange(length, device=hidden_BLD.device)))


class GPT2Trunk(Trunk):
    """Where GPT-2 keeps its parts."""

    def locate(self) -> tuple[str, str, str, str]:
        return "transformer.wte", "transformer.h", "transformer.ln_f", ""

    def block_plan(self) -> BlockPlan:
        # Queries, keys and values lie in one matrix.
        columns: dict[str, tuple[Segment, ...]] = {"attn.c_attn": ("even",) * 3, "mlp.c_fc": ("even",)}
        return BlockPlan(columns, ("attn.c_proj", "mlp.c_proj"), attention="attn")

    @property
    def max_length(self) -> int | None:
        return int(self.config.n_positions)

    def before_blocks(self) -> list[Layer]:
        return [Layer("positions", PositionEmbedding, {"config": self.config, "path": "transformer.wpe"}, kind="other")]
