"""Several histories in one row, kept apart: positions count from 0 in each, and attention stays within each.

Shapes: B rows, L positions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.masking_utils import create_masks_for_generate

from recparallel.errors import ConfigError


class Packing:
    """How the rows of one micro-batch are divided, for all layers of a stage.

    Args:
        positions_BL: int64, each position's place in its history: a history begins where it is 0. Padding behind the last one has 0
            everywhere.

    Raises:
        ConfigError: they are not of this kind.
    """

    def __init__(self, positions_BL: Tensor) -> None:
        steps = positions_BL.diff(dim=-1)
        goes_on = (positions_BL[:, 1:] == 0) | (steps == 1)
        if positions_BL.dim() != 2 or not bool(goes_on.all()) or bool((positions_BL[:, 0] != 0).any()):
            raise ConfigError("positions of packed rows count up from 0 in each history, int64 of shape (B, L)")
        self.positions_BL = positions_BL
        self._masks: dict[tuple[int, torch.dtype], Any] = {}

    @staticmethod
    def of(batch: Any) -> "Packing | None":
        """That of a micro-batch, None where each row is one history."""
        positions_BL = getattr(batch, "positions_BL", None)
        return None if positions_BL is None else Packing(positions_BL)

    def masks(self, config: PretrainedConfig, like_BLD: Tensor) -> Any:
        """What attention of such a model takes, made once: transformers reads the borders from the positions.

        Args:
            like_BLD: its shape, dtype and device are looked at.
        """
        key = (id(config), like_BLD.dtype)  # configs live as long as their blocks
        if key not in self._masks:
            self._masks[key] = masks_of(config, like_BLD, self.on(like_BLD))
        return self._masks[key]

    def on(self, like: Tensor) -> Tensor:
        """The positions on the device of a tensor."""
        self.positions_BL = self.positions_BL.to(like.device)
        return self.positions_BL


def masks_of(config: PretrainedConfig, like_BLD: Tensor, positions_BL: Tensor | None) -> Any:
    """Causal masks as the family wants them: a tensor, None for one that the kernel knows, or several by kind of attention."""
    return create_masks_for_generate(
        config, like_BLD, attention_mask=None, past_key_values=None, position_ids=positions_BL
    )


def run_packed(layer: Callable[..., Any], x: Any, packing: Packing | None) -> Any:
    """The output of a layer; those with ``takes_packing`` are told where histories begin."""
    return layer(x, packing) if packing is not None and getattr(layer, "takes_packing", False) else layer(x)
