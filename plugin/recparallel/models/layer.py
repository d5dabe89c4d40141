"""How a pipeline layer is described before it is built, and what the last one gives.

Shapes: B sequences, L positions, D hidden width, S rows of the item table that this rank has: all V, where ranks share nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from recparallel.models.packing import Packing, run_packed
from recparallel.plan import LayerKind

HeadOutput = tuple[Tensor, Tensor]
"""Hidden states (B, L, D) and the table (S, D) to score them against. Scores are made by the loss or the ranking, for
the positions that they need, instead of for every position here."""


@dataclass(frozen=True)
class Layer:
    """How to build one pipeline layer.

    Args:
        name: unique and readable, ``"blocks.3"``.
        module_class: an ``nn.Module`` subclass.
        kwargs: what it is built with.
        tie: layers with the same key share one module.
        alike: layers with the same text do the same work, so a profile measures one of them.
        forward: called as ``forward(module, inputs)`` in place of ``module(inputs)``.
        kind: what it is in a decoder-only model.
    """

    name: str
    module_class: type[nn.Module]
    kwargs: dict[str, Any] = field(default_factory=dict)
    tie: str | None = None
    alike: str | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    kind: LayerKind = "block"

    def build(self) -> nn.Module:
        return self.module_class(**self.kwargs)

    def run(self, module: nn.Module, inputs: Any, packing: Packing | None = None) -> Any:
        """The layer's output, whether or not it has a ``forward`` of its own."""
        return run_packed(module, inputs, packing) if self.forward is None else self.forward(module, inputs)
