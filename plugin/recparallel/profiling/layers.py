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
from recparallel.models.packing import Packing
from recparallel.plan import LayerCost, Profile
from recparallel.profiling.passes import LayerPasses
from recparallel.profiling.steady import steady_passes
from recparallel.profiling.sums import PLAIN_SUMS, GradientSums
from recparallel.profiling.update import measure_update

LossFunction = Callable[[Any, Any], Tensor]
Progress = Callable[[Sequence[Layer]], Sequence[Layer]]

_MOST_RUNS = 50


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
    sample: tuple[Any, ...],
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
        sample: one micro-batch: inputs (B, L) int64 and labels; or a :class:`~recparallel.data.batching.PackedBatch`.
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
        layers=with_names(layers, measured.costs),
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


@dataclass(frozen=True)
class Measured:
    """The costs of some layers by index, and the passes of the one that was to be kept, or None."""

    costs: dict[int, LayerCost]
    kept: LayerPasses | None = None


def measure_layers(
    layers: Sequence[Layer],
    loss_fn: LossFunction,
    sample: tuple[Any, ...],
    *,
    wanted: Collection[int],
    effort: Effort,
    keep: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sums: GradientSums = PLAIN_SUMS,
    progress: Progress = lambda layers: layers,
) -> Measured:
    """The costs of the layers ``wanted``, by index, and of one of them, ``keep``, the passes too.

    1. Feed the micro-batch to the first layer, each output to the next layer. One of those that are alike speaks for all:
       what comes out of it has the shape of what comes out of the last of them.
    2. A wanted layer runs ``warmup`` times untimed and ``repeats`` times timed, forward and backward; the median counts. The
       loss belongs to the last layer, since it runs where that layer runs.
    3. Gradients add up from run to run, as they do over the micro-batches of a step (:class:`LayerPasses`).
    """
    (inputs, labels), packing = sample[:2], Packing.of(sample)
    shared: dict[str, nn.Module] = {}
    costs: dict[int, LayerCost] = {}
    kept: LayerPasses | None = None
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
                    x = layer.run(module, x, packing)
                continue
            closing = index == len(layers) - 1
            run = _closed(layer, module, loss_fn, labels) if closing else _open(layer, module, packing)
            lazy = layer.kind in sums.lazy
            passes = LayerPasses(run, module=module, x=x, tied=layer.tie is not None, sums=sums, lazy=lazy)
            costs[index] = _cost(layer, passes, module, effort, sums)
            x = passes.output
            if index == keep:
                kept = passes
            del passes
    return Measured(costs, kept)


def _open(layer: Layer, module: nn.Module, packing: Packing | None) -> Callable[[Any], Any]:
    return lambda x: layer.run(module, x, packing)


def _closed(layer: Layer, module: nn.Module, loss_fn: LossFunction, labels: Any) -> Callable[[Any], Any]:
    return lambda x: loss_fn(layer.run(module, x), labels.to(x.device))


def _cost(layer: Layer, passes: LayerPasses, module: nn.Module, effort: Effort, sums: GradientSums) -> LayerCost:
    forward, backward = _seconds(passes, effort)
    passes.drop_gradients()
    tied = layer.tie is not None
    update = measure_update(module, effort.repeats, time.perf_counter, tied=tied, sums=sums, touched=passes.touched)
    parameters = list(module.parameters())
    return LayerCost(
        name=layer.name,
        forward_seconds=forward,
        backward_seconds=backward,
        update_seconds=update.seconds,
        num_parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        gradient_bytes=sum(p.numel() * (4 if sums.fp32 else p.element_size()) for p in parameters),
        optimizer_bytes=update.state_bytes,
        activation_bytes=passes.kept_bytes,
        boundary_bytes=passes.output.numel() * passes.output.element_size(),
        touched_share=passes.touched_share,
    )


def _seconds(passes: LayerPasses, effort: Effort) -> tuple[float, float]:
    runs = 1
    if effort.least_seconds:
        start = time.perf_counter()
        passes.once()
        runs = max(1, min(_MOST_RUNS, round(effort.least_seconds / max(time.perf_counter() - start, 1e-6))))

    def repeat() -> tuple[float, float]:
        forward, backward = zip(*(passes.once() for _ in range(runs)))
        return statistics.fmean(forward), statistics.fmean(backward)

    forward, backward = zip(*steady_passes(repeat, repeats=effort.repeats, warmup=effort.warmup))
    return statistics.median(forward), statistics.median(backward)
