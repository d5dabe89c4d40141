"""GPT-2: learned positions, added between the embedding and the first block, and no rotary table."""

from recparallel.models.layer import Layer
from recparallel.models.layers import PositionTable
from recparallel.models.trunk import Trunk
from recparallel.tensor_parallel.block import BlockPlan, Segment


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
        table = {
            "config": self.config,
            "path": "transformer.wpe",
            "max_length": self.max_length,
            "setting": "n_positions",
            "dropout": self.config.embd_pdrop,
        }
        return [Layer("positions", PositionTable, table, kind="other")]
