"""Sparse gradients of a tied item table, with stock parts: ``nn.Embedding(sparse=True)``, and ``SparseAdam`` or plain ``SGD``."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.trainer import LEARNING_RATE, WEIGHT_DECAY


class SparseRows:
    """A table of which the loss takes rows, with a sparse gradient: ``table[rows]`` is an embedding look-up.

    Indexing a tensor has a dense gradient, and dense plus sparse is dense: a tied table needs this at its head too.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __getitem__(self, rows: Tensor) -> Tensor:
        return functional.embedding(rows, self._weight, sparse=True)


_OF_TABLE = {"adam": torch.optim.SparseAdam, "sgd": torch.optim.SGD}


class TableAndRest(torch.optim.Optimizer):
    """``SparseAdam`` or ``SGD`` for the table and ``AdamW`` for everything else, behind one optimizer's interface."""

    def __init__(self, table: nn.Parameter, rest: list[nn.Parameter], *, kind: str) -> None:
        self._parts = [
            _OF_TABLE[kind]([table], lr=LEARNING_RATE),
            torch.optim.AdamW(rest, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True),
        ]
        super().__init__([{"params": [table]}, {"params": rest}], {"lr": LEARNING_RATE})

    @classmethod
    def of(cls, model: nn.Module, table: nn.Embedding, kind: str) -> "TableAndRest":
        """For all parameters of ``model``, which contains ``table``; ``adam`` or ``sgd`` for that."""
        own = list(table.parameters())
        return cls(own[0], [parameter for parameter in model.parameters() if parameter is not own[0]], kind=kind)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update both parts."""
        assert closure is None
        for part in self._parts:
            part.step()
