"""Time the blocks of a recommender under several ways to compute attention.

Which one is the fastest depends on device, type and length: on a CPU in bf16 the backward pass of torch's fused attention takes
several times as long as that of three matrix products.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from recparallel.models.layer import Layer
from recparallel.models.layers import DecoderBlock
from recparallel.models.packing import Packing, run_packed

_ROUNDS = 5
_LEAST_SECONDS = 0.5
"""Of all rounds: short ones are repeated, as a rank with a CPU quota does short work at full speed."""

_MOST_ROUNDS = 50


def time_attentions(
    layers_of: Mapping[str, Sequence[Layer]],
    shape: Sequence[int],
    width: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    packing: Packing | None = None,
) -> dict[str, float]:
    """Seconds of the forward and backward pass of a block, by attention; of a model with several kinds of blocks, of one of each.

    All take turns, and the median counts. One that fails, say for want of memory, takes inf seconds, unless it is the first, the
    model's own. The random state is left as it was.

    Args:
        layers_of: the model's layers under each attention.
        shape: sequences B and positions L of a micro-batch.
        width: hidden width D.
        packing: how the rows of the micro-batch are divided.
    """
    with torch.random.fork_rng(), torch.enable_grad():
        x = torch.randn(*shape, width, device=device, dtype=dtype, requires_grad=True)
        blocks: dict[str, list[torch.nn.Module]] = {}
        for number, (name, layers) in enumerate(layers_of.items()):
            try:
                modules = [layer.build().to(device=device, dtype=dtype).train() for layer in _one_of_each(layers)]
                _pass(modules, x, packing)
            except (RuntimeError, ValueError, ImportError):
                if number == 0:
                    raise
            else:
                blocks[name] = modules
        seconds: dict[str, list[float]] = {name: [] for name in blocks}
        start = time.perf_counter()
        for number in range(_MOST_ROUNDS):
            if number >= _ROUNDS and time.perf_counter() - start > _LEAST_SECONDS:
                break
            for name, modules in blocks.items():
                seconds[name].append(_pass(modules, x, packing))
    return {name: statistics.median(seconds[name]) if name in seconds else math.inf for name in layers_of}


def _one_of_each(layers: Sequence[Layer]) -> list[Layer]:
    blocks = [layer for layer in layers if issubclass(layer.module_class, DecoderBlock)]
    return list({layer.alike: layer for layer in reversed(blocks)}.values())


def _pass(modules: Sequence[torch.nn.Module], x: torch.Tensor, packing: Packing | None) -> float:
    start = _now(x)
    for module in modules:
        output = run_packed(module, x, packing)
        output.backward(torch.ones_like(output))
    return _now(x) - start


def _now(x: torch.Tensor) -> float:
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)
    return time.perf_counter()
