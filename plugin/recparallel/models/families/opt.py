"""OPT: learned positions that begin at row 2 of their table, and no rotary table."""

import torch
from torch import Tensor
from transformers import PretrainedConfig

from recparallel.errors import ConfigError
from recparallel.models.layer import Layer
from recparallel.models.layers import PositionTable
from recparallel.models.trunk import Trunk
from recparallel.tensor_parallel.block import BlockPlan


class OffsetPositions(PositionTable):
    """OPT's table knows by itself where its positions begin."""

    def vectors(self, positions: Tensor) -> Tensor:
        return self.part(None, position_ids=torch.atleast_2d(positions))  # type: ignore[no-any-return]


class OPTTrunk(Trunk):
    """Where OPT keeps its parts.

    Raises:
        ConfigError: a variant whose parts are others: projections around the trunk, no norm behind the last block, or blocks that
            are left out at random.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        for key, given, needed in (
            ("word_embed_proj_dim", config.word_embed_proj_dim, config.hidden_size),
            ("do_layer_norm_before", config.do_layer_norm_before, True),
            ("_remove_final_layer_norm", config._remove_final_layer_norm, False),
            ("layerdrop", config.layerdrop, 0.0),
        ):
            if given != needed:
                raise ConfigError(f"OPT with {key}={given!r} is not supported, only with {needed!r}")
        super().__init__(config)

    def locate(self) -> tuple[str, str, str, str]:
        decoder = "model.decoder"
        return f"{decoder}.embed_tokens", f"{decoder}.layers", f"{decoder}.final_layer_norm", ""

    def block_plan(self) -> BlockPlan:
        columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "fc1")
        return BlockPlan(dict.fromkeys(columns, ("even",)), ("self_attn.out_proj", "fc2"))

    @property
    def max_length(self) -> int | None:
        return int(self.config.max_position_embeddings)

    def before_blocks(self) -> list[Layer]:
        table = {
            "config": self.config,
            "path": "model.decoder.embed_positions",
            "max_length": self.max_length,
            "setting": "max_position_embeddings",
        }
        return [Layer("positions", OffsetPositions, table, kind="other")]
