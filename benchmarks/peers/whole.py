"""The whole model on one rank: the pipeline's layers in an ``nn.Module``, for every peer that does not cut it.

Shapes: B sequences, L positions.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.trainer import SEED
from recparallel.models.recommender import Recommender


class WholeModel(nn.Module):
    """All layers one after the other, and the loss.

    Each layer draws its initial weights from the seed that a ``PipelineModule`` gives it (``SEED`` + index), so that all
    sides start from the same weights.

    Args:
        recommender: layers and loss.
        precision: ``bf16`` runs the forward pass under autocast; for a peer that casts the weights itself, say ``fp32``.
        sparse: gradients of the item table as sparse tensors (:mod:`benchmarks.peers.sparse`).
    """

    def __init__(self, recommender: Recommender, *, precision: str = "fp32", sparse: bool = False) -> None:
        super().__init__()
        self._layers = recommender.layers
        self._loss = recommender.loss_fn
        self._autocast = precision == "bf16"
        self._sparse = sparse
        self.parts = nn.ModuleList()
        shared: dict[str, nn.Module] = {}
        for index, layer in enumerate(recommender.layers):
            torch.manual_seed(SEED + index)
            module = shared.get(layer.tie or "")
            if module is None:
                module = layer.build()
                if layer.tie:
                    shared[layer.tie] = module
            self.parts.append(module)
        if sparse:
            self.table.sparse = True

    @property
    def table(self) -> nn.Embedding:
        """The item table of the first layer."""
        table = self.parts[0]
        assert isinstance(table, nn.Embedding)
        return table

    def forward(self, inputs_BL: Tensor, labels_BL: Tensor) -> Tensor:
        """The loss of a micro-batch."""
        autocast: Any = torch.autocast("cpu", dtype=torch.bfloat16) if self._autocast else nullcontext()
        with autocast:
            hidden: Any = inputs_BL
            for layer, module in zip(self._layers, self.parts, strict=True):
                hidden = layer.run(module, hidden)
            if self._sparse:
                from benchmarks.peers.sparse import SparseRows

                hidden = (hidden[0], SparseRows(hidden[1]))
            return self._loss(hidden, labels_BL)
