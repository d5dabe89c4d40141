"""Every private name of DeepSpeed that the engines touch, and the versions for which they were read.

``SEAMS`` is checked, name by name and signature by signature, by ``tests/engines/test_seams.py``: an upgrade that
moves a seam fails there and not in someone's training run.
"""

import importlib
import inspect
from importlib.metadata import version

from packaging.version import Version

from recparallel.errors import HostVersionError

LOWEST, BELOW = "0.19.8", "0.20"

SEAMS: dict[str, tuple[str, ...]] = {
    # a group of ranks of several worlds
    "torch.distributed.distributed_c10d:_new_process_group_helper": (
        "group_size",
        "group_rank",
        "global_ranks_in_group",
        "backend",
        "store",
        "group_name",
        "backend_options",
        "timeout",
        "pg_tag",
        "device_id",
        "group_desc",
    ),
    # stage cuts
    "deepspeed.runtime.pipe.module:PipelineModule._partition_layers": ("self", "method"),
    "deepspeed.runtime.pipe.module:PipelineModule._count_layer_params": ("self",),
    "deepspeed.runtime.pipe.module:PipelineModule._set_bounds": ("self", "start", "stop"),
    "deepspeed.runtime.pipe.module:PipelineModule._synchronize_tied_weights": ("self",),
    "deepspeed.runtime.pipe.module:PipelineModule._precompute_checkpointable_values": ("self",),
    "deepspeed.runtime.pipe.module:PipelineModule._recursive_getattr": ("module", "attr_name"),
    # the training step and its instructions
    "deepspeed.runtime.pipe.engine:PipelineEngine.train_batch": ("self", "data_iter"),
    "deepspeed.runtime.pipe.engine:PipelineEngine.eval_batch": (
        "self",
        "data_iter",
        "return_logits",
        "compute_loss",
        "reduce_output",
        "bcast_loss",
        "num_micro_batches",
    ),
    "deepspeed.runtime.pipe.engine:PipelineEngine.reset_activation_shape": ("self",),
    "deepspeed.runtime.pipe.engine:PipelineEngine.set_dataiterator": ("self", "iterator"),
    "deepspeed.runtime.pipe.engine:PipelineEngine._INSTRUCTION_MAP": (),
    "deepspeed.runtime.pipe.engine:PipelineEngine._train_schedule": ("self",),
    "deepspeed.runtime.pipe.engine:PipelineEngine._send_tensor_meta": ("self", "buffer", "recv_stage"),
    "deepspeed.runtime.pipe.engine:PipelineEngine._recv_tensor_meta": ("self", "send_stage"),
    "deepspeed.runtime.pipe.schedule:PipeSchedule._buffer_idx": ("self", "micro_batch_id"),
    "deepspeed.runtime.pipe.engine:PipelineEngine.is_last_stage": ("self",),
    "deepspeed.runtime.pipe.engine:PipelineEngine._bf16_reduce_grads": ("self",),
    # state of the optimizers
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer._lazy_init_hp_params_optimizer_state": ("self",),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state": ("self",),
    # optimizers around other parameters
    "deepspeed.runtime.engine:DeepSpeedEngine._configure_optimizer": ("self", "client_optimizer", "model_parameters"),
    "deepspeed.runtime.engine:DeepSpeedEngine._backward_post_hook": ("self",),
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer.destroy": ("self",),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.destroy": ("self",),
    # gradients
    "deepspeed.runtime.pipe.module:PipelineModule.get_tied_weights_and_groups": ("self",),
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer.get_grads_for_norm": ("self", "for_clipping"),
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer.update_hp_grads": ("self", "clear_lp_grads"),
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer.clear_lp_grads": ("self", "set_to_none"),
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer._update_hp_grad": (
        "self",
        "lp",
        "group_idx",
        "param_idx",
        "clear_lp_grads",
    ),
    "deepspeed.runtime.engine:DeepSpeedEngine.allreduce_gradients": ("self", "bucket_size"),
    "deepspeed.runtime.engine:DeepSpeedEngine.clip_fp32_gradients": ("self",),
    "deepspeed.runtime.engine:DeepSpeedEngine._reduce_non_expert_gradients": ("self", "grads", "elements_per_buffer"),
    "deepspeed.runtime.engine:DeepSpeedEngine.sparse_allreduce_no_retain": (
        "self",
        "bucket",
        "dp_group",
        "dp_world_size",
    ),
    "deepspeed.runtime.engine:DeepSpeedEngine._take_model_step": ("self", "lr_kwargs"),
    "deepspeed.runtime.engine:split_half_float_double_sparse": ("tensors",),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.independent_gradient_partition_epilogue": ("self",),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.reduce_gradients": ("self", "pipeline_parallel"),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.gradient_reduction_w_predivide": (
        "self",
        "tensor",
        "communication_data_type",
    ),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.get_gradient_for_reduction": ("self", "param"),
}


def check_version(installed: str | None = None) -> None:
    """Refuse a DeepSpeed whose seams were not read.

    Raises:
        HostVersionError: says which versions work and what to install.
    """
    found = Version(installed or version("deepspeed"))
    if not Version(LOWEST) <= found or Version(found.base_version) >= Version(BELOW):
        raise HostVersionError(
            f"recparallel was built for deepspeed >={LOWEST},<{BELOW}; installed is {found}. "
            f'Run: pip install "deepspeed>={LOWEST},<{BELOW}"'
        )


def signature_of(seam: str) -> tuple[str, ...]:
    """Parameter names of what ``seam`` (``"module:dotted.name"``) names; empty for what is not callable."""
    module, _, path = seam.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    while inspect.isfunction(found) and "func" in (hidden := inspect.getclosurevars(found).nonlocals):
        found = hidden["func"]  # DeepSpeed's profiling decorator does not say what it wraps
    return tuple(inspect.signature(found).parameters) if callable(found) else ()
