"""The pipeline layers of a recommender.

Shapes: B sequences, L positions, D hidden width, V rows of the item table, S of them on this rank.

Histories are padded on the right and attention is causal, so a real position never attends to padding: no mask travels
with the activations, and one tensor crosses each stage boundary.

A layer that is given ``ranks`` is the share of one of them. What goes into it and comes out is the same on all, or, where they
share positions (``ranks.sequence``), hidden states of a rank's own L / T of them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from recparallel.errors import ConfigError
from recparallel.models.layer import HeadOutput
from recparallel.models.packing import Packing, masks_of
from recparallel.models.row_gradients import KEEPER, keeper_of, look_up_rows
from recparallel.models.trunk import Trunk
from recparallel.tensor_parallel import ALONE, TensorRanks
from recparallel.tensor_parallel.block import share_block
from recparallel.tensor_parallel.randomness import OwnRandomness
from recparallel.tensor_parallel.sequence import add_up_gradients, all_positions
from recparallel.tensor_parallel.table import hold_rows, look_up


class ItemEmbedding(nn.Embedding):
    """Item table: ids (B, L) int64 to vectors (B, L, D). Row 0 is padding; ``num_items`` real rows follow.

    Args:
        dropout: share of the vectors' entries that is zeroed while training.
        std: standard deviation of the initial weights.
        scale: by which the vectors are multiplied.
        ranks: that share the rows.
    """

    def __init__(
        self,
        *,
        num_items: int,
        dim: int,
        std: float = 0.02,
        dropout: float = 0.0,
        scale: float = 1.0,
        ranks: TensorRanks = ALONE,
    ) -> None:
        self.std, self.scale, self.ranks, self.num_rows = std, scale, ranks, num_items + 1
        super().__init__(num_items + 1, dim)
        self.dropout = nn.Dropout(dropout)
        if not ranks.alone:
            hold_rows(self, ranks)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, ids_BL: Tensor) -> Tensor:
        keeper = keeper_of(self.weight) if self.padding_idx is None else None
        vectors_of = super().forward if keeper is None else partial(look_up_rows, keeper=keeper)
        vectors_BLD = look_up(vectors_of, ids_BL, self.num_rows, self.ranks)
        if self.scale != 1.0:
            vectors_BLD = vectors_BLD * vectors_BLD.new_tensor(self.scale)
        with own_randomness(self, self.ranks, vectors_BLD):
            return self.dropout(vectors_BLD)


class TrunkPart(nn.Module):
    """One submodule of the Hugging Face model, built alone: ``path`` is its name there (``"norm"``). Ranks that share positions add
    up the gradients of its weights."""

    def __init__(self, *, config: PretrainedConfig, path: str, ranks: TensorRanks = ALONE) -> None:
        super().__init__()
        self.part = Trunk.of(config).materialize(path)
        self.ranks = ranks
        if ranks.sequence:
            add_up_gradients(self.parameters(), ranks)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.part(inputs)

    @property
    def weight(self) -> Tensor:
        """The submodule's own weight; lets a token table be tied to a head."""
        return self.part.weight  # type: ignore[return-value]


class TokenEmbedding(TrunkPart):
    """The language model's own token table: ids (B, L) int64 to (B, L, D)."""

    def __init__(
        self, *, config: PretrainedConfig, path: str, dropout: float = 0.0, ranks: TensorRanks = ALONE
    ) -> None:
        super().__init__(config=config, path=path, ranks=ranks)
        self.dropout = nn.Dropout(dropout)
        self.num_rows = len(self.weight)
        if not ranks.alone:
            hold_rows(self.part, ranks)

    def forward(self, ids_BL: Tensor) -> Tensor:
        vectors_BLD = look_up(self.part, ids_BL, self.num_rows, self.ranks)
        with own_randomness(self, self.ranks, vectors_BLD):
            return self.dropout(vectors_BLD)


class FinalNorm(TrunkPart):
    """The norm behind the last decoder block."""


class PositionTable(TrunkPart):
    """Vectors of the positions, added to hidden states (B, L, D), L at most ``max_length``, or to a rank's share of them.

    Args:
        max_length: positions that the table has.
        setting: what the model's config calls that number.
        dropout: of the sums; None for a family that has none there.
    """

    takes_packing = True

    def __init__(
        self,
        *,
        config: PretrainedConfig,
        path: str,
        max_length: int,
        setting: str,
        dropout: float | None = None,
        ranks: TensorRanks = ALONE,
    ) -> None:
        super().__init__(config=config, path=path, ranks=ranks)
        self.max_length, self.setting, self.family = max_length, setting, config.model_type
        self.dropout = nn.Identity() if dropout is None else nn.Dropout(dropout)

    def vectors(self, positions: Tensor) -> Tensor:
        """Of the positions, counted from 0: (L,) to (L, D), or (B, L) to (B, L, D)."""
        return self.part(positions)  # type: ignore[no-any-return]

    def forward(self, hidden_BLD: Tensor, packing: Packing | None = None) -> Tensor:
        length = number_of_positions(hidden_BLD, self.ranks)
        if length > self.max_length:
            raise ConfigError(
                f"histories of {length} positions, but this {self.family} has {self.setting}={self.max_length}"
            )
        positions = torch.arange(length, device=hidden_BLD.device) if packing is None else packing.on(hidden_BLD)
        if self.ranks.sequence:
            positions = positions[..., slice(*self.ranks.positions(length))]
        with own_randomness(self, self.ranks, hidden_BLD):
            return self.dropout(hidden_BLD + self.vectors(positions))


class DecoderBlock(nn.Module):
    """One decoder block of the Hugging Face model, (B, L, D) to (B, L, D), with its own rotary table where the family
    has one.

    Args:
        dropout: of what the block adds to its input, while training; most families have none there.
    """

    takes_packing = True

    def __init__(
        self, *, config: PretrainedConfig, index: int, dropout: float = 0.0, ranks: TensorRanks = ALONE
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else None
        trunk = Trunk.of(config)
        self.config = trunk.skeleton.config  # it knows the kind of attention that was chosen, and so the mask
        self.block = trunk.materialize(f"{trunk.blocks}.{index}")
        self.rotary = trunk.materialize(trunk.rotary) if trunk.rotary else None
        self.attention = trunk.attention_type(index)
        self.ranks = ranks
        if not ranks.alone:
            share_block(self.block, trunk.block_plan(), self.config, ranks)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DecoderBlock":
        """A cast to bf16 must not reach the rotary frequencies: positions would round. Only their device changes."""
        rotary, self.rotary = self.rotary, None
        super()._apply(fn, recurse)
        self.rotary = rotary if rotary is None else rotary.to(next(self.parameters()).device)
        return self

    def forward(self, hidden_BLD: Tensor, packing: Packing | None = None) -> Tensor:
        length = number_of_positions(hidden_BLD, self.ranks)
        # Only its shape, type and device are looked at.
        whole_BLD = hidden_BLD.new_empty(1).expand(hidden_BLD.shape[0], length, hidden_BLD.shape[2])
        if packing is None:
            positions = torch.arange(length, device=hidden_BLD.device).unsqueeze(0)
            masks = masks_of(self.config, whole_BLD, None)
        else:
            positions, masks = packing.on(hidden_BLD), packing.masks(self.config, whole_BLD)
        kwargs: dict[str, Any] = {
            "attention_mask": masks[self.attention] if isinstance(masks, dict) else masks,
            "position_ids": positions,
        }
        if self.rotary is not None:
            kwargs["position_embeddings"] = self.rotary(hidden_BLD, position_ids=positions)
        with own_randomness(self, self.ranks, hidden_BLD):
            output_BLD = self.block(hidden_BLD, **kwargs)
            if self.dropout is not None and self.training:
                output_BLD = hidden_BLD + self.dropout(output_BLD - hidden_BLD)
            return output_BLD


class NextItemHead(nn.Module):
    """An item table of its own to score against: (B, L, D) to :data:`HeadOutput`."""

    def __init__(self, *, num_items: int, dim: int, std: float = 0.02, ranks: TensorRanks = ALONE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_items + 1, dim).normal_(std=std))
        self.ranks = ranks
        if not ranks.alone:
            hold_rows(self, ranks)

    def forward(self, hidden_BLD: Tensor) -> HeadOutput:
        return head_output(all_positions(hidden_BLD, self.ranks), self.weight)


class TokenHead(TrunkPart):
    """The language model's own output matrix: (B, L, D) to :data:`HeadOutput`."""

    def __init__(self, *, config: PretrainedConfig, path: str, ranks: TensorRanks = ALONE) -> None:
        super().__init__(config=config, path=path, ranks=ranks)
        if not ranks.alone:
            hold_rows(self.part, ranks)

    def forward(self, hidden_BLD: Tensor) -> HeadOutput:  # type: ignore[override]
        return head_output(all_positions(hidden_BLD, self.ranks), self.weight)


def score_with_table(module: nn.Module, hidden_BLD: Tensor) -> HeadOutput:
    """The head of a tied model: the first layer's table, seen from the last stage."""
    return head_output(all_positions(hidden_BLD, module.ranks), module.weight)  # type: ignore[arg-type]


def number_of_positions(hidden_BLD: Tensor, ranks: TensorRanks) -> int:
    """Of the whole sequences."""
    return hidden_BLD.shape[1] * (ranks.size if ranks.sequence else 1)


def own_randomness(module: nn.Module, ranks: TensorRanks, hidden_BLD: Tensor) -> AbstractContextManager[None]:
    """While ranks that share positions train, what they draw for theirs differs."""
    if ranks.sequence and module.training:
        return OwnRandomness(ranks.rank).within(hidden_BLD.device)
    return nullcontext()


def head_output(hidden_BLD: Tensor, table_SD: Tensor) -> HeadOutput:
    """What a head gives: the table as a view of its parameter, as DeepSpeed prepares a backward pass (0.19) when the gradient of
    the first output arrives that an operation has made, and then forgets bf16 gradients that were there before: a parameter's
    own gradient would be."""
    view_SD = _View.apply(table_SD)
    if (keeper := keeper_of(table_SD)) is not None:
        setattr(view_SD, KEEPER, keeper)
    return hidden_BLD, view_SD


class _View(torch.autograd.Function):
    """The same numbers as an operation's output; torch's own views take no sparse gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)  # where all gradients are kept by rows, none of the whole table is made
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
        return grad


def scores_at(outputs: HeadOutput, positions_B: Tensor) -> Tensor:
    """Scores (B, S) of every row of the table at one position (B,) int64 of each sequence."""
    hidden_BLD, table_SD = outputs
    rows = torch.arange(len(positions_B), device=hidden_BLD.device)
    return hidden_BLD[rows, positions_B.to(hidden_BLD.device)] @ table_SD.T
