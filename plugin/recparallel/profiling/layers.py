"""Time each pipeline layer with a real micro-batch, one layer in memory at a time.

The random state and the model that will be trained are left as they were: layers are built anew for the measurement,
inside a forked RNG, and dropped after it.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recparallel.models.layer import Layer
from recparallel.plan import LayerCost, Profile

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class _Measured:
    cost: LayerCost
    output: Any


def profile_layers(
    layers: Sequence[Layer],
    loss_fn: LossFunction,
    sample: tuple[Tensor, Any],
    *,
    repeats: int = 3,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[Sequence[Layer]], Sequence[Layer]] = lambda layers: layers,
) -> Profile:
    """Measure forward and backward seconds, parameters, kept activations and output size of every layer.

    1. Feed the micro-batch to the first layer, each output to the next layer.
    2. Per layer, after ``warmup`` runs, take the median of ``repeats`` timed forward and backward passes. The loss
       belongs to the last layer, since it runs where that layer runs.
    3. Of layers that are ``alike``, measure the first: the others do the same work, unless the loss comes on top.

    Args:
        sample: one micro-batch: inputs (B, L) int64 and labels.
        progress: wraps the iteration, for a progress bar.
    """
    inputs, labels = sample
    shared: dict[str, nn.Module] = {}
    seen: dict[str, LayerCost] = {}
    costs: list[LayerCost] = []
    x: Any = inputs.to(device)
    with torch.random.fork_rng(), torch.enable_grad():
        for index, layer in enumerate(progress(layers)):
            last = index == len(layers) - 1
            if layer.alike is not None and layer.alike in seen and not last:  # the last one alone runs the loss
                costs.append(seen[layer.alike].model_copy(update={"name": layer.name}))
                continue
            if layer.tie is not None and layer.tie in shared:
                module = shared[layer.tie]
            else:
                module = layer.build().to(device=device, dtype=dtype).train()
            if layer.tie is not None:
                shared[layer.tie] = module
            run = _closed(layer, module, loss_fn, labels) if last else _open(layer, module)
            measured = _measure(layer.name, run, module, x, repeats=repeats, warmup=warmup)
            costs.append(measured.cost)
            if layer.alike is not None:
                seen[layer.alike] = measured.cost
            x = measured.output
    return Profile(
        layers=tuple(costs),
        micro_batch=inputs.shape[0],
        sequence_length=inputs.shape[1],
        dtype=str(dtype).removeprefix("torch."),
    )


def _open(layer: Layer, module: nn.Module) -> Callable[[Any], Any]:
    return lambda x: layer.run(module, x)


def _closed(layer: Layer, module: nn.Module, loss_fn: LossFunction, labels: Any) -> Callable[[Any], Any]:
    return lambda x: loss_fn(layer.run(module, x), labels.to(x.device))


def _measure(
    name: str, run: Callable[[Any], Any], module: nn.Module, x: Any, *, repeats: int, warmup: int
) -> _Measured:
    forward, backward = [], []
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    output: Any = None
    for repeat in range(warmup + repeats):
        entering = x.detach().requires_grad_(x.is_floating_point())
        start = _now(entering)
        if repeat == 0:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = run(entering)
        else:
            output = run(entering)
        middle = _now(entering)
        if output.requires_grad:
            output.backward(torch.ones_like(output))
        end = _now(entering)
        if repeat >= warmup:
            forward.append(middle - start)
            backward.append(end - middle)
        module.zero_grad(set_to_none=True)
    parameters = list(module.parameters())
    output = output.detach()
    cost = LayerCost(
        name=name,
        forward_seconds=statistics.median(forward),
        backward_seconds=statistics.median(backward),
        num_parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        activation_bytes=sum(kept.values()),
        boundary_bytes=output.numel() * output.element_size(),
    )
    return _Measured(cost, output)


def _now(tensor: Tensor) -> float:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize(tensor.device)
    return time.perf_counter()
