"""Whether a DeepSpeed JSON and its ``"recparallel"`` section go together: the checks that need both.

They run before a process group exists and import neither torch nor DeepSpeed.
"""

from typing import Any

from recparallel.config import SECTION, RecParallelConfig
from recparallel.errors import ConfigError

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def check_together(
    deepspeed_config: dict[str, Any], config: RecParallelConfig, *, world_size: int, num_layers: int | None = None
) -> None:
    """Refuse combinations that cannot run, before any process starts talking.

    Args:
        world_size: number of processes of the launch.
        num_layers: layers of the model, where known.

    Raises:
        ConfigError: what was given, why it cannot run, and what would.
    """
    if world_size % (config.stages * config.tensor):
        divisors = [d for d in range(1, world_size + 1) if world_size % d == 0]
        given = f"{SECTION}.stages is {config.stages}" + (
            f" and {SECTION}.tensor {config.tensor}" if config.tensor > 1 else ""
        )
        asked = "stages × tensor" if config.tensor > 1 else "stages"
        raise ConfigError(f"{given}, but the launch has {world_size} processes; {asked} must be one of {divisors}")
    if num_layers is not None and config.stages > num_layers:
        raise ConfigError(
            f"{SECTION}.stages is {config.stages}, but the model has only {num_layers} layers; use at most {num_layers}"
        )
    _check_batch_sizes(deepspeed_config, replicas=config.replicas(world_size))
    check_pipeline(deepspeed_config, config)
    check_wire_format(deepspeed_config, config)
    check_lengths(deepspeed_config, config)
    check_tensor(deepspeed_config, config)
    check_spread_head(deepspeed_config, config)
    check_compression(deepspeed_config, config)
    check_lazy_rows(deepspeed_config, config)
    check_adaptive(deepspeed_config, config)
    check_data_parallel(deepspeed_config, config, world_size=world_size)
    check_shares(deepspeed_config, config, world_size=world_size)


def _check_batch_sizes(deepspeed_config: dict[str, Any], *, replicas: int) -> None:
    total, micro, accumulation = (_positive(deepspeed_config, key) for key in BATCH_KEYS)
    if not total and not micro:
        raise ConfigError(
            "the DeepSpeed config sets neither train_batch_size nor train_micro_batch_size_per_gpu; set one"
        )
    if total and micro and accumulation and total != micro * accumulation * replicas:
        raise ConfigError(
            f"train_batch_size is {total}, but train_micro_batch_size_per_gpu {micro} × "
            f"gradient_accumulation_steps {accumulation} × {replicas} replicas = {micro * accumulation * replicas}; "
            "they must be equal"
        )
    per_replica = (micro or 1) * (accumulation or 1) * replicas
    if total and total % per_replica:
        raise ConfigError(
            f"train_batch_size {total} is not a multiple of {per_replica} (train_micro_batch_size_per_gpu {micro or 1} × "
            f"gradient_accumulation_steps {accumulation or 1} × {replicas} replicas)"
        )


def _positive(deepspeed_config: dict[str, Any], key: str) -> int | None:
    value = deepspeed_config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} must be an integer of at least 1, got {value!r}")
    return value


def zero_stage(deepspeed_config: dict[str, Any]) -> int:
    """ZeRO stage of the config, 0 where it names none.

    Raises:
        ConfigError: it is no stage.
    """
    zero = deepspeed_config.get("zero_optimization") or {}
    if not isinstance(zero, dict):
        raise ConfigError(f"zero_optimization must be a JSON object, got {zero!r}")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"zero_optimization.stage must be 0, 1, 2 or 3, got {stage!r}")
    return int(stage)


def precision(deepspeed_config: dict[str, Any]) -> str:
    """``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Raises:
        ConfigError: ``bf16.enabled`` or ``fp16.enabled`` is neither true nor false.
    """
    for key, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        enabled = (deepspeed_config.get(key) or {}).get("enabled", False)
        if not isinstance(enabled, bool):
            raise ConfigError(f"{key}.enabled must be true or false, got {enabled!r}")
        if enabled:
            return dtype
    return "float32"


def check_pipeline(deepspeed_config: dict[str, Any], config: RecParallelConfig) -> None:
    """Refuse ZeRO stages that cannot run under a pipeline, also one of a single stage.

    Raises:
        ConfigError: ZeRO-2 or ZeRO-3.
    """
    stage = zero_stage(deepspeed_config)
    if stage >= 2:
        raise ConfigError(
            f"zero_optimization.stage is {stage} with {SECTION}.stages {config.stages}: ZeRO-2 and ZeRO-3 cut the gradients that a "
            "pipeline, also one of a single stage, accumulates over micro-batches, and DeepSpeed refuses the pair; use stage 0 or 1"
        )


def check_wire_format(deepspeed_config: dict[str, Any], config: RecParallelConfig) -> None:
    """Refuse a wire format where nothing would cross in it.

    Raises:
        ConfigError: which setting, and what to do.
    """
    if config.wire_format == "same":
        return
    where = f"{SECTION}.wire_format is {config.wire_format!r}"
    if config.stages < 2:
        raise ConfigError(f"{where} with {SECTION}.stages {config.stages}: nothing crosses to another stage; remove it")
    if config.schedule != "eager_1f1b":
        raise ConfigError(f"{where} with {SECTION}.schedule {config.schedule!r}: it runs with 'eager_1f1b'")
    if precision(deepspeed_config) != "float32":
        raise ConfigError(
            f"{where} with weights in {precision(deepspeed_config)}: tensors are of half precision already; remove it"
        )


def check_lengths(deepspeed_config: dict[str, Any], config: RecParallelConfig) -> None:
    """Refuse dynamic lengths under a schedule that does not know them ahead, and packed rows with DeepSpeed's recomputation.

    Raises:
        ConfigError: which setting, and what runs.
    """
    if config.lengths == "dynamic" and config.stages > 1 and config.schedule != "eager_1f1b":
        raise ConfigError(
            f"{SECTION}.lengths is 'dynamic' with {SECTION}.schedule {config.schedule!r}: its buffers have one shape; it runs with "
            "'eager_1f1b'"
        )
    interval = (deepspeed_config.get("pipeline") or {}).get("activation_checkpoint_interval")
    if config.lengths == "packed" and interval:
        raise ConfigError(
            f"{SECTION}.lengths is 'packed' with pipeline.activation_checkpoint_interval {interval}: DeepSpeed's recomputation "
            f"does not know where histories begin; remove it, {SECTION}.partition.recompute has layers recompute as memory needs"
        )


def check_tensor(deepspeed_config: dict[str, Any], config: RecParallelConfig) -> None:
    """Refuse settings of DeepSpeed that divide layers or activations a second time.

    Raises:
        ConfigError: which setting, and what to use instead.
    """
    if config.sequence_parallel and config.tensor == 1:
        raise ConfigError(
            f"{SECTION}.sequence_parallel with {SECTION}.tensor 1: it is tensor ranks that share positions; use tensor 2 or more"
        )
    if config.tensor == 1:
        return
    where = f"{SECTION}.tensor is {config.tensor}"
    if config.compression is not None and config.compression.codec != "none":
        raise ConfigError(
            f"{where} with {SECTION}.compression.codec {config.compression.codec!r}: weights that every tensor rank has, such as "
            "norms, would be compressed differently on each and drift apart; leave compression out"
        )
    given = (deepspeed_config.get("tensor_parallel") or {}).get("autotp_size", 1)
    if given != 1:
        raise ConfigError(f"{where} and tensor_parallel.autotp_size {given!r}: both cut the layers; use one of them")
    pipeline = deepspeed_config.get("pipeline") or {}
    if parted := [key for key in ("pipe_partitioned", "grad_partitioned") if pipeline.get(key)]:
        raise ConfigError(
            f"{where} with pipeline.{parted[0]}: true: boundary tensors travel whole between stages; remove it"
        )


def check_spread_head(deepspeed_config: dict[str, Any], config: RecParallelConfig) -> None:
    """Refuse settings under which stages cannot share the head.

    Raises:
        ConfigError: which setting, and what would run.
    """
    if not config.spread_head:
        return
    where = f"{SECTION}.spread_head"
    if config.stages < 2:
        raise ConfigError(f"{where} with {SECTION}.stages {config.stages}: there is nobody to share the head with")
    if config.tensor > 1:
        raise ConfigError(
            f"{where} with {SECTION}.tensor {config.tensor}: tensor ranks share the head already; use one of them"
        )
    if config.schedule != "eager_1f1b":
        raise ConfigError(f"{where} with {SECTION}.schedule {config.schedule!r}: it runs with 'eager_1f1b'")
    if precision(deepspeed_config) == "float16":
        raise ConfigError(f"{where} with fp16.enabled: the head's gradients are not scaled; use bf16 or fp32")
    autocast = deepspeed_config.get("torch_autocast") or {}
    if autocast.get("enabled") and autocast.get("dtype") in ("float16", "fp16", "half"):
        raise ConfigError(
            f"{where} with torch_autocast.dtype {autocast['dtype']!r}: the head's gradients are not scaled"
        )


def check_compression(deepspeed_config: dict[str, Any], config: RecParallelConfig) -> None:
    """Refuse settings of DeepSpeed under which no gradient hook can run.

    Raises:
        ConfigError: which setting, why, and what would run.
    """
    if config.compression is None:
        return
    zero = deepspeed_config.get("zero_optimization") or {}
    stage = zero_stage(deepspeed_config)
    where = f"{SECTION}.compression"
    if stage > 2:
        raise ConfigError(
            f"{where}.codec is {config.compression.codec!r} with zero_optimization.stage {stage}: weights and "
            "gradients are cut there; codecs run with stages 0, 1 and 2"
        )
    if precision(deepspeed_config) == "float16" and not stage:
        raise ConfigError(
            f"{where} with fp16.enabled and zero_optimization.stage 0: DeepSpeed divides gradients there by a loss scale that "
            "it has not multiplied the loss with; use stage 1 or 2, or bf16"
        )
    check_compression_with_zero(config, stage)
    if stage and zero.get("overlap_comm"):
        raise ConfigError(f"{where} with zero_optimization.overlap_comm: true is not supported; set it to false")
    if stage and zero.get("contiguous_gradients") is False:
        raise ConfigError(f"{where} needs zero_optimization.contiguous_gradients: true (the default), got false")
    if deepspeed_config.get("prescale_gradients") or deepspeed_config.get("gradient_predivide_factor", 1.0) != 1.0:
        raise ConfigError(
            f"{where}: a hook averages by itself; remove prescale_gradients and gradient_predivide_factor"
        )
    optimizer = str((deepspeed_config.get("optimizer") or {}).get("type", "")).lower()
    if optimizer.startswith(("onebit", "zeroone")):
        raise ConfigError(f"{where} with optimizer.type {optimizer!r}: 1-bit optimizers compress gradients; choose one")
    momentum = ((deepspeed_config.get("optimizer") or {}).get("params") or {}).get("momentum", 0.0)
    if config.compression.momentum_correction is not None and optimizer and (optimizer != "sgd" or momentum):
        raise ConfigError(
            f"{where}.momentum_correction with optimizer.type {optimizer!r} and momentum {momentum!r}: it takes the place of the "
            "optimizer's momentum; use SGD with momentum 0"
        )


def check_compression_with_zero(config: RecParallelConfig, stage: int) -> None:
    """Refuse what a ZeRO stage has no use for.

    Raises:
        ConfigError: which setting, and what to use.
    """
    compression, where = config.compression, f"{SECTION}.compression"
    if compression is None or not stage:
        return
    if compression.bucket_size is not None:
        raise ConfigError(
            f"{where}.bucket_size is {compression.bucket_size} with zero_optimization.stage {stage}, which has "
            "zero_optimization.reduce_bucket_size for that; use that key"
        )
    if stage == 2 and compression.momentum_correction is not None:
        raise ConfigError(
            f"{where}.momentum_correction with zero_optimization.stage 2, which exchanges every micro-batch: momentum would be "
            "multiplied with itself; use stage 0 or 1"
        )


def check_adaptive(deepspeed_config: dict[str, Any], config: RecParallelConfig) -> None:
    """Refuse settings with which layers cannot move while the model trains.

    Raises:
        ConfigError: which setting, why, and what would run.
    """
    if not config.partition.adaptive:
        return
    where = f"{SECTION}.partition.method 'adaptive'"
    if config.spread_head:
        raise ConfigError(f"{where} with {SECTION}.spread_head: shares of the head cannot move yet; use one of them")
    if config.compression is not None and config.compression.codec == "torch_powersgd":
        raise ConfigError(
            f"{where} with {SECTION}.compression.codec 'torch_powersgd': what it keeps belongs to its buckets, and these change "
            "with the layers of a stage; use top_k, torch_bf16 or torch_fp16"
        )
    if precision(deepspeed_config) == "float16" and zero_stage(deepspeed_config) == 0:
        raise ConfigError(
            f"{where} with fp16.enabled and zero_optimization.stage 0: DeepSpeed's optimizer for these hides its weights; use "
            "stage 1, or bf16"
        )
    if ((deepspeed_config.get("zero_optimization") or {}).get("offload_optimizer") or {}).get(
        "device", "none"
    ) != "none":
        raise ConfigError(f"{where} with zero_optimization.offload_optimizer is not supported; remove one of them")


def check_lazy_rows(deepspeed_config: dict[str, Any], config: RecParallelConfig) -> None:
    """Refuse a training whose steps rows could not catch up with.

    Raises:
        ConfigError: no AdamW, fp16, or an optimizer on another device than the weights.
    """
    if not config.lazy_rows:
        return
    where = f"{SECTION}.lazy_rows"
    optimizer = deepspeed_config.get("optimizer") or {}
    params = optimizer.get("params") or {}
    kind = str(optimizer.get("type", "")).lower()
    decoupled = kind == "adamw" or (kind == "adam" and params.get("adam_w_mode", True))
    if not decoupled or params.get("amsgrad") or not params.get("bias_correction", True):
        raise ConfigError(
            f"{where} is for AdamW with bias correction and without amsgrad, the DeepSpeed config has optimizer {optimizer!r}"
        )
    if precision(deepspeed_config) == "float16":
        raise ConfigError(f"{where} runs in fp32 and bf16, the DeepSpeed config enables fp16: rows know no loss scale")
    autocast = deepspeed_config.get("torch_autocast") or {}
    if autocast.get("enabled") and str(autocast.get("dtype")).removeprefix("torch.") in ("float16", "fp16", "half"):
        raise ConfigError(
            f"{where} with torch_autocast.dtype {autocast['dtype']!r}: rows know no loss scale; use bfloat16"
        )
    offload = (deepspeed_config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none":
        raise ConfigError(
            f"{where} keeps a table's state beside the table, but zero_optimization.offload_optimizer is {offload!r}"
        )
    if config.spread_head:
        raise ConfigError(
            f"{where} with {SECTION}.spread_head, which reads all rows of the head in every step; use one of them"
        )


def check_shares(deepspeed_config: dict[str, Any], config: RecParallelConfig, *, world_size: int) -> None:
    """Refuse shares of a global batch that replicas cannot have.

    Args:
        world_size: number of processes of the launch.

    Raises:
        ConfigError: which setting, and what is allowed.
    """
    shares, where = config.data_parallel.shares, f"{SECTION}.data_parallel.shares"
    if shares is None:
        return
    if config.stages > 1 or config.tensor > 1:
        raise ConfigError(
            f"{where} with {SECTION}.stages {config.stages} and {SECTION}.tensor {config.tensor}: what ranks hand on to each "
            "other has one shape; it runs with 1 and 1"
        )
    if shares == "by_speed":
        return
    replicas, micro = config.replicas(world_size), _positive(deepspeed_config, "train_micro_batch_size_per_gpu")
    if len(shares) != replicas:
        raise ConfigError(f"{where} {shares} has {len(shares)} numbers, the launch has {replicas} replicas")
    if micro is not None and sum(shares) != micro * replicas:
        raise ConfigError(
            f"{where} {shares} are {sum(shares)} rows, but train_micro_batch_size_per_gpu {micro} × {replicas} replicas are "
            f"{micro * replicas}; they must be equal"
        )


def check_data_parallel(deepspeed_config: dict[str, Any], config: RecParallelConfig, *, world_size: int) -> None:
    """Refuse replicas that cannot be worlds of their own.

    Args:
        world_size: number of processes of the launch.

    Raises:
        ConfigError: their number does not divide the launch, or something cannot be exchanged.
    """
    if not config.data_parallel.apart:
        return
    where, pipelines = f"{SECTION}.data_parallel", config.replicas(world_size)
    worlds = config.worlds(world_size)
    if pipelines % worlds:
        allowed = [count for count in range(1, pipelines + 1) if pipelines % count == 0]
        raise ConfigError(
            f"{where}.replicas is {worlds}, but the launch has {world_size} processes, which are {pipelines} pipelines of stages × "
            f"tensor {config.stages * config.tensor}; replicas must be one of {allowed}"
        )
    if config.lazy_rows:
        raise ConfigError(
            f"{where}.mode {config.data_parallel.mode!r} with {SECTION}.lazy_rows: replicas exchange whole tables, whose rows must "
            "have caught up; use one of them"
        )
    if config.partition.adaptive:
        raise ConfigError(
            f"{where}.mode {config.data_parallel.mode!r} with {SECTION}.partition.method 'adaptive': replicas would be cut "
            "differently and have nothing to exchange with each other; use 'profile'"
        )
    if precision(deepspeed_config) == "float16" and zero_stage(deepspeed_config) == 0:
        raise ConfigError(
            f"{where}.mode {config.data_parallel.mode!r} with fp16.enabled and zero_optimization.stage 0: DeepSpeed's "
            "optimizer for these hides its weights; use stage 1, or bf16"
        )
    exchanged = config.data_parallel.compression
    given = [] if exchanged is None else sorted(exchanged.model_fields_set & {"bucket_size", "momentum_correction"})
    if exchanged is not None and exchanged.aggregation == "hierarchical":
        given.append("aggregation 'hierarchical'")
    if given:
        raise ConfigError(
            f"{where}.compression.{given[0]} is not supported between replicas that train apart; remove it"
        )
    if (
        exchanged is not None
        and exchanged.codec == "torch_powersgd"
        and config.data_parallel.options.get("fragments", 1) != 1
    ):
        raise ConfigError(
            f"{where}.compression 'torch_powersgd' with fragments {config.data_parallel.options['fragments']!r}: torch tells "
            "buckets apart by their number in an exchange, and fragments have the same numbers; use 'power_sgd'"
        )
    if config.spread_head or config.tensor > 1:
        key = "spread_head" if config.spread_head else "tensor"
        raise ConfigError(
            f"{where}.mode {config.data_parallel.mode!r} does not run with {SECTION}.{key} yet; remove one"
        )
