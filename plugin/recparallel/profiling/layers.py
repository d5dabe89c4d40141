"""Time each pipeline layer with a real micro-batch, one layer in memory at a time.

The random state and the model that will be trained are left as they were: layers are built anew for the measurement,
inside a forked RNG, and dropped after it.
"""

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recparallel.models.layer import Layer
from recparallel.models.layers import ItemEmbedding
from recparallel.models.row_gradients import KEEPER, RowGradients
from recparallel.plan import LayerCost, Profile
from recparallel.profiling.steady import steady_passes
from recparallel.profiling.sums import PLAIN_SUMS, GradientSums
from recparallel.profiling.update import UpdateCost, measure_update

LossFunction = Callable[[Any, Any], Tensor]
Progress = Callable[[Sequence[Layer]], Sequence[Layer]]

_MOST_RUNS = 50
_EVICTED_BYTES = 2**24
"""Larger than a core's own caches, and than its share of the common one: what other layers and micro-batches of a stage touch
between two passes of a layer. Much more makes the layers of small stages look slower than they are."""


@dataclass(frozen=True)
class Effort:
    """How hard to measure.

    Attributes:
        repeats: timed passes, of which the median counts.
        warmup: untimed ones before them.
        least_seconds: a pass that is shorter is run so often that a repeat takes this long, the emptying of caches included;
            a rank with a CPU quota does short work at full speed, which it cannot keep up.
    """

    repeats: int = 3
    warmup: int = 1
    least_seconds: float = 0.0


def profile_layers(
    layers: Sequence[Layer],
    loss_fn: LossFunction,
    sample: tuple[Tensor, Any],
    *,
    repeats: int = 3,
    warmup: int = 1,
    least_seconds: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sums: GradientSums = PLAIN_SUMS,
    progress: Progress = lambda layers: layers,
) -> Profile:
    """Measure forward and backward seconds, parameters, kept activations and output size of every layer, here.

    Of layers that are ``alike`` the first is measured: the others do the same work, unless the loss comes on top.

    Args:
        sample: one micro-batch: inputs (B, L) int64 and labels.
        repeats, warmup, least_seconds: see :class:`Effort`.
        sums: how the training will add up gradients.
        progress: wraps the iteration, for a progress bar.
    """
    measured = measure_layers(
        layers,
        loss_fn,
        sample,
        wanted=representatives(layers),
        effort=Effort(repeats, warmup, least_seconds),
        device=device,
        dtype=dtype,
        sums=sums,
        progress=progress,
    )
    return Profile(
        layers=with_names(layers, measured),
        micro_batch=sample[0].shape[0],
        sequence_length=sample[0].shape[1],
        dtype=str(dtype).removeprefix("torch."),
    )


def representatives(layers: Sequence[Layer]) -> list[int]:
    """One layer for all that are alike, and the last one, which alone runs the loss."""
    seen: set[str] = set()
    chosen = []
    for index, layer in enumerate(layers):
        if layer.alike is None or layer.alike not in seen or index == len(layers) - 1:
            chosen.append(index)
        if layer.alike is not None:
            seen.add(layer.alike)
    return chosen


def with_names(layers: Sequence[Layer], measured: Mapping[int, LayerCost]) -> tuple[LayerCost, ...]:
    """A cost for every layer, from those that were measured."""
    by_kind = {
        layers[i].alike: cost for i, cost in sorted(measured.items(), reverse=True) if layers[i].alike is not None
    }
    costs = []
    for index, layer in enumerate(layers):
        cost = measured[index] if index in measured else by_kind[layer.alike]
        costs.append(cost.model_copy(update={"name": layer.name, "kind": layer.kind, "tie": layer.tie}))
    return tuple(costs)


def measure_layers(
    layers: Sequence[Layer],
    loss_fn: LossFunction,
    sample: tuple[Tensor, Any],
    *,
    wanted: Collection[int],
    effort: Effort,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sums: GradientSums = PLAIN_SUMS,
    progress: Progress = lambda layers: layers,
) -> dict[int, LayerCost]:
    """The costs of the layers ``wanted``, by index.

    1. Feed the micro-batch to the first layer, each output to the next layer. One of those that are alike speaks for all:
       what comes out of it has the shape of what comes out of the last of them.
    2. A wanted layer runs ``warmup`` times untimed and ``repeats`` times timed, forward and backward; the median counts. The
       loss belongs to the last layer, since it runs where that layer runs.
    3. Gradients add up from run to run, as they do over the micro-batches of a step, and a CPU's caches are cold before each
       pass.
    """
    inputs, labels = sample
    shared: dict[str, nn.Module] = {}
    costs: dict[int, LayerCost] = {}
    x: Any = inputs.to(device)
    chosen = set(representatives(layers))
    last = max(wanted, default=-1)
    with torch.random.fork_rng(), torch.enable_grad():
        for index, layer in enumerate(progress(layers)):
            if index > last or index not in chosen:
                continue
            if layer.tie is not None and layer.tie in shared:
                module = shared[layer.tie]
            else:
                module = layer.build().to(device=device, dtype=dtype).train()
            if layer.tie is not None:
                shared[layer.tie] = module
            if index not in wanted:
                with torch.no_grad():
                    x = layer.run(module, x)
                continue
            closing = index == len(layers) - 1
            run = _closed(layer, module, loss_fn, labels) if closing else _open(layer, module)
            table = module.weight if layer.tie is not None else None
            timing = _time(run, module, x, effort, table=table, sums=sums)
            update = measure_update(module, effort.repeats, time.perf_counter, sums=sums)
            costs[index] = _cost(layer.name, timing, module, update)
            x = timing.output
    return costs


def _open(layer: Layer, module: nn.Module) -> Callable[[Any], Any]:
    return lambda x: layer.run(module, x)


def _closed(layer: Layer, module: nn.Module, loss_fn: LossFunction, labels: Any) -> Callable[[Any], Any]:
    return lambda x: loss_fn(layer.run(module, x), labels.to(x.device))


@dataclass(frozen=True)
class _Timing:
    forward: float
    backward: float
    kept_bytes: int
    output: Tensor
    touched_share: float


def _time(
    run: Callable[[Any], Any], module: nn.Module, x: Any, effort: Effort, *, table: Any, sums: GradientSums
) -> _Timing:
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    output: Any = None
    masters = _masters(module) if sums.fp32 else {}
    keeper = RowGradients(module.weight) if sums.rows and isinstance(module, ItemEmbedding) else None
    if keeper is not None:
        setattr(module.weight, KEEPER, keeper)
    evict = _evicting(x.device)
    runs = 1
    seen = False
    touched = 1.0

    def once() -> tuple[float, float]:
        nonlocal output, seen, touched
        entering = x.detach().requires_grad_(x.is_floating_point())
        evict()
        first, seen = not seen, True
        start = _now(entering)
        if first:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = run(entering)
        else:
            output = run(entering)
        middle = _now(entering)
        forth = middle - start
        if output.requires_grad:
            gradient = torch.ones_like(output)
            evict()
            middle = _now(entering)
            output.backward(gradient)
            _accumulate(module, masters)
        back = _now(entering) - middle
        if keeper is not None and first:
            keeper.hand_over()
        elif keeper is not None:
            keeper.forget()
        if first and table is not None:
            touched = _touched_share(masters.get(table, table.grad))
        return forth, back

    def repeat() -> tuple[float, float]:
        forward, backward = zip(*(once() for _ in range(runs)))
        return statistics.fmean(forward), statistics.fmean(backward)

    if effort.least_seconds:
        start = time.perf_counter()
        once()
        runs = max(1, min(_MOST_RUNS, round(effort.least_seconds / max(time.perf_counter() - start, 1e-6))))
    forward, backward = zip(*steady_passes(repeat, repeats=effort.repeats, warmup=effort.warmup))
    module.zero_grad(set_to_none=True)
    return _Timing(
        statistics.median(forward), statistics.median(backward), sum(kept.values()), output.detach(), touched
    )


def _touched_share(gradient: Tensor | None) -> float:
    """Of the rows of a gradient, those that are not zero; of a table that is not trained, nothing travels."""
    if gradient is None:
        return 0.0
    return float((gradient != 0).any(dim=1).float().mean()) if gradient.dim() == 2 else 1.0


def _evicting(device: torch.device) -> Callable[[], object]:
    """What empties a CPU's caches before a pass: in a stage of several layers none finds its weights there."""
    if device.type != "cpu":
        return lambda: None
    buffer = torch.zeros(_EVICTED_BYTES // 4)
    return lambda: buffer.add_(1.0)


def _masters(module: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Where gradients of half-precision weights are summed apart; full-precision ones sum in place."""
    return {p: torch.zeros_like(p, dtype=torch.float32) for p in module.parameters() if p.dtype != torch.float32}


def _accumulate(module: nn.Module, masters: Mapping[nn.Parameter, Tensor]) -> None:
    """What DeepSpeed does behind every backward pass with ``grad_accum_dtype`` fp32: add an fp32 copy to the sum, and clear."""
    for parameter in module.parameters():
        if parameter.grad is not None and parameter in masters:
            masters[parameter].add_(parameter.grad.to(torch.float32))
            parameter.grad.zero_()


def _cost(name: str, timing: _Timing, module: nn.Module, update: UpdateCost) -> LayerCost:
    parameters = list(module.parameters())
    return LayerCost(
        name=name,
        forward_seconds=timing.forward,
        backward_seconds=timing.backward,
        update_seconds=update.seconds,
        num_parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        gradient_bytes=sum(p.numel() * 4 for p in parameters),
        optimizer_bytes=update.state_bytes,
        activation_bytes=timing.kept_bytes,
        boundary_bytes=timing.output.numel() * timing.output.element_size(),
        touched_share=timing.touched_share,
    )


def _now(tensor: Tensor) -> float:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize(tensor.device)
    return time.perf_counter()
