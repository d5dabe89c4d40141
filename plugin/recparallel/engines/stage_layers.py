"""The layers that a stage of a pipeline holds: built singly, and put in another range of layers' place.

DeepSpeed builds a ``PipelineModule`` once (``_build``, 0.19). What it keeps of its layers is kept here in the same way: modules by
the numbers of their layers, and the list of what a forward pass calls.
"""

from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from recparallel.plan import Partition


def layers_of(partition: Partition, stage: int) -> range:
    """Numbers of a stage's layers."""
    return range(partition.bounds[stage], partition.bounds[stage + 1])


def build_layer(pipeline: Any, number: int, like: Mapping[str, tuple[torch.dtype, bool]]) -> nn.Module:
    """One layer, on this rank's device, its weights yet to be set; random states stay as they are.

    Args:
        like: by name, the dtype and whether it is trained, of the parameters and buffers of the module that it will stand for.
    """
    device = get_accelerator().current_device_name()
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        module: nn.Module = pipeline._layer_specs[number].build()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        dtype, trained = like[name]
        tensor.data = tensor.data.to(device=device, dtype=dtype)
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(trained)
            tensor.ds_pipe_replicated = False  # type: ignore[attr-defined]
    return module.train(pipeline.training)


def properties(module: nn.Module) -> dict[str, tuple[torch.dtype, bool]]:
    """What :func:`build_layer` must know of the module."""
    return {
        name: (tensor.dtype, tensor.requires_grad)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


def rearrange(pipeline: Any, partition: Partition, modules: Mapping[int, nn.Module]) -> None:
    """Let this stage hold its range of layers of ``partition``.

    Args:
        modules: by number, the layers of the new range that have a module of their own. Tied ones stay where they are.
    """
    here, there = layers_of(pipeline.partition, pipeline.stage_id), layers_of(partition, pipeline.stage_id)
    calls = dict(zip(here, pipeline.forward_funcs))
    for number in here:
        if hasattr(pipeline, str(number)):  # a tied layer has no module of its own
            delattr(pipeline, str(number))
    for number in there:
        if number in modules:
            pipeline.add_module(str(number), modules[number])
            calls[number] = modules[number]
    pipeline.forward_funcs = [calls[number] for number in there]
    pipeline.fwd_map = {str(number): place for place, number in enumerate(there) if number in modules}
    pipeline._set_bounds(start=there.start, stop=there.stop)
    pipeline.parts, pipeline.partition = list(partition.bounds), partition
    pipeline.is_checkpointable_results_interval = None
    pipeline._precompute_checkpointable_values()
