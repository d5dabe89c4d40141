"""What all stock DeepSpeed sides share: the config file's content, and how to leave no state behind."""

from typing import Any

from benchmarks.peers.trainer import LEARNING_RATE, WEIGHT_DECAY, Job


def config_of(job: Job, *, num_replicas: int, zero: int = 0, own_optimizer: bool = False) -> dict[str, Any]:
    """A DeepSpeed config. Clipping is off on all sides: the stock pipeline's norm depends on the cut.

    Args:
        job: workload and setting.
        num_replicas: that share the global batch.
        zero: ZeRO stage.
        own_optimizer: the optimizer is handed over instead.
    """
    micro_batch = job.setting.micro_batch
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": job.spec.global_batch // (num_replicas * micro_batch),
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
    }
    if not own_optimizer:
        params = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "torch_adam": True, "fused": True}
        config["optimizer"] = {"type": "AdamW", "params": params}
    if job.setting.precision == "bf16":
        config["bf16"] = {"enabled": True}
    return config


def join() -> None:
    """Let DeepSpeed take the process group that is there; a ``PipelineModule`` needs that before it is made."""
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)


def forget_groups() -> None:
    """DeepSpeed keeps process groups of the last topology in module globals; the next engine must make its own."""
    from deepspeed.module_inject.layers import set_autotp_mode
    from deepspeed.utils import groups

    groups.mpu = None
    groups._WORLD_GROUP = None
    groups._DATA_PARALLEL_GROUP = None
    groups._MODEL_PARALLEL_GROUP = None
    groups._TENSOR_MODEL_PARALLEL_GROUP = None
    set_autotp_mode(False)
