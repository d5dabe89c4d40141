"""Forward and backward passes of one layer, as they find their data in a training.

What the layer before has just made is in a CPU's caches, and so is the gradient that comes back; weights, and what the forward pass
has kept, were pushed out of them by the other layers and micro-batches of the stage.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recparallel.models.layers import ItemEmbedding
from recparallel.models.row_gradients import KEEPER, RowGradients, SummedRows
from recparallel.profiling.sums import GradientSums

_EVICTED_BYTES = 3 * 2**23
"""What other layers and micro-batches of a stage touch between two passes of a layer: larger than a core's own caches, and about
its share of the common one. With half of it layers look up to a tenth faster than in a training, with twice of it slower."""


class LayerPasses:
    """One layer with its micro-batch, to be run again and again; gradients add up from run to run.

    Args:
        run: the layer.
        module: its weights.
        x: what comes in.
        tied: the weights are a table that other layers share.
        sums: how gradients add up.
        lazy: the table is updated by the rows that a step has touched.

    Attributes:
        kept_bytes: what the forward pass keeps for the backward pass, weights apart.
        output: of the layer.
        touched_share: of the rows of a tied table, those to which one micro-batch gives a gradient.
        touched: numbers of these rows, of a table that is updated by them.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        *,
        module: nn.Module,
        x: Any,
        tied: bool,
        sums: GradientSums,
        lazy: bool = False,
    ) -> None:
        self.kept_bytes = 0
        self.output: Any = None
        self.touched_share = 1.0
        self._run, self._module, self._x = run, module, x
        self._table: Any = module.weight if tied else None
        self._fp32 = sums.fp32
        self._masters: dict[nn.Parameter, Tensor] = {}
        self.touched: Tensor | None = None
        self._keeper: RowGradients | None = None
        if lazy:
            self._keeper = SummedRows(module.weight)  # type: ignore[arg-type]
        elif sums.rows and isinstance(module, ItemEmbedding):
            self._keeper = RowGradients(module.weight)
        if self._keeper is not None:
            setattr(module.weight, KEEPER, self._keeper)
        self._evict = _evicting(x.device)

    def once(self) -> tuple[float, float]:
        """Seconds of a forward and of a backward pass, 0 of one that there is not."""
        first = self.output is None
        self._evict()
        entering = self._x.detach().clone().requires_grad_(self._x.is_floating_point())
        start = _now(entering)
        output = self._keeping(entering) if first else self._run(entering)
        forward = _now(entering) - start
        backward = 0.0
        if output.requires_grad:
            self._evict()
            gradient = torch.ones_like(output)
            start = _now(entering)
            output.backward(gradient)
            if self._fp32:
                _accumulate(self._module, self._masters)
            backward = _now(entering) - start
        self.output = output.detach()
        if first and isinstance(self._keeper, SummedRows):
            self.touched, _ = self._keeper.take()
            self.touched_share = len(self.touched) / len(self._module.weight)  # type: ignore[arg-type]
        elif first and self._keeper is not None:
            self._keeper.hand_over()
        if first and self._table is not None and self.touched is None:
            self.touched_share = _touched_share(self._masters.get(self._table, self._table.grad))
        return forward, backward

    def drop_gradients(self) -> None:
        """Free them; further passes make new ones."""
        self._module.zero_grad(set_to_none=True)
        self._masters.clear()
        if self._keeper is not None:
            self._keeper.forget()

    def _keeping(self, entering: Any) -> Any:
        kept: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in self._module.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = self._run(entering)
        self.kept_bytes = sum(kept.values())
        return output


def _touched_share(gradient: Tensor | None) -> float:
    """Of the rows of a gradient, those that are not zero; of a table that is not trained, nothing travels."""
    if gradient is None:
        return 0.0
    return float((gradient != 0).any(dim=1).float().mean()) if gradient.dim() == 2 else 1.0


def _evicting(device: torch.device) -> Callable[[], object]:
    """What empties a CPU's caches."""
    if device.type != "cpu":
        return lambda: None
    buffer = torch.zeros(_EVICTED_BYTES // 4)
    return lambda: buffer.add_(1.0)


def _accumulate(module: nn.Module, masters: dict[nn.Parameter, Tensor]) -> None:
    """What DeepSpeed does with half-precision gradients behind every backward pass with ``grad_accum_dtype`` fp32: add an fp32 copy
    to the sum, and clear them."""
    for parameter in module.parameters():
        if parameter.grad is None or parameter.dtype == torch.float32:
            continue
        if parameter not in masters:
            masters[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        masters[parameter].add_(parameter.grad.to(torch.float32))
        parameter.grad.zero_()


def _now(tensor: Tensor) -> float:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize(tensor.device)
    return time.perf_counter()
