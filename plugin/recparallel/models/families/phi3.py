"""Phi-3: queries, keys and values lie in one matrix, and so do both inputs of the gate."""

from recparallel.models.trunk import Trunk
from recparallel.tensor_parallel.block import BlockPlan, Segment


class Phi3Trunk(Trunk):
    """How tensor ranks divide Phi-3's matrices; transformers' own plan makes all outputs on every rank."""

    def block_plan(self) -> BlockPlan:
        columns: dict[str, tuple[Segment, ...]] = {
            "self_attn.qkv_proj": ("even", "keys", "keys"),
            "mlp.gate_up_proj": ("even", "even"),
        }
        return BlockPlan(columns, ("self_attn.o_proj", "mlp.down_proj"))
