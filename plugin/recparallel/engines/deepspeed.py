"""``initialize`` and ``attach``: recparallel on a DeepSpeed engine.

``initialize`` is ``deepspeed.initialize`` with a recommender for a model and a ``"recparallel"`` section in the JSON.
``attach`` is the half of it that works on an engine which someone else made.
"""

import functools
import logging
import os
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch.nn.parallel import DistributedDataParallel

from recparallel.config import RecParallelConfig, parse_config, read_deepspeed_config
from recparallel.config_checks import (
    check_adaptive,
    check_compression,
    check_compression_with_zero,
    check_together,
    precision,
    zero_stage,
)
from recparallel.data_parallel.configured import check_codec, configured_hook
from recparallel.data_parallel.hook import BoundHook, Hook, bind
from recparallel.engines import ddp, megatron
from recparallel.engines.agreement import Ranks
from recparallel.engines.bindings import Bindings
from recparallel.engines.build_lock import warn_about_build_lock
from recparallel.engines.ddp import DDPHandle
from recparallel.engines.eager_schedule import bind_eager_schedule
from recparallel.engines.evaluation_step import bind_evaluation_step
from recparallel.engines.gradient_exchange import data_parallel_group
from recparallel.engines.handle import Handle
from recparallel.engines.lazy_rows import LazyRows, lazy_kinds, trains_lazy_rows
from recparallel.engines.loading import endless, first_micro_batch, loader_of
from recparallel.engines.megatron import MegatronHandle, is_megatron_ddp
from recparallel.engines.moving import check_movable
from recparallel.engines.packed_rows import Sample
from recparallel.engines.pipeline import RecommenderPipeline
from recparallel.engines.rebalancing import bind_rebalancing
from recparallel.engines.replica_binding import make_mode
from recparallel.engines.replica_membership import Elastic
from recparallel.engines.replica_world import ReplicaWorld, divide_launch
from recparallel.engines.seams import check_version
from recparallel.engines.speed_shares import Shares
from recparallel.engines.training_step import bind_training_step
from recparallel.errors import ConfigError, HookError
from recparallel.models.attention import with_attention
from recparallel.models.recommender import Recommender
from recparallel.models.shared import check_spreadable, shared_among
from recparallel.plan import Partition, Profile
from recparallel.profiling.sums import GradientSums
from recparallel.tensor_parallel import TensorRanks
from recparallel.tensor_parallel.ranks import check_positions

logger = logging.getLogger(__name__)


def initialize(
    *,
    model: Any,
    config: str | Path | dict[str, Any],
    training_data: Any = None,
    max_length: int | None = None,
    sample: Sample | None = None,
    profile: Profile | None = None,
    partition: Partition | None = None,
    **kwargs: Any,
) -> tuple[Any, Any, Any, Any]:
    """Build a pipeline from a recommender, cut it, and train it with DeepSpeed. Returns what ``deepspeed.initialize``
    returns.

    Args:
        model: a :class:`~recparallel.models.recommender.Recommender`; anything else goes to DeepSpeed as it is and is
            attached to.
        config: DeepSpeed JSON, as a path or dict, with a ``"recparallel"`` section.
        training_data: windows of item ids (``Split.train_windows``, or a ``datasets.Dataset`` with lists ``items``). The
            returned loader shuffles them by seed and epoch and yields, for each optimizer step, this replica's
            micro-batches; ``engine.train_batch()`` without an iterator reads from it, epoch after epoch.
        max_length: positions per sequence; needed with ``training_data``.
        sample: one micro-batch (inputs, labels) to time layers with, where there is no ``training_data``.
        profile: use this profile instead of timing layers.
        partition: use this cut instead of making one; a run with a gradient hook needs its stored one to resume
            (``engines/checkpoint.py``).
        **kwargs: for ``deepspeed.initialize``.

    Returns:
        engine, optimizer, loader, scheduler. ``engine.recparallel`` is the :class:`Handle`.

    Raises:
        ConfigError: the config is wrong; raised before any process group is made.
        PartitionError: the layers cannot be cut as asked; raised on every rank.
    """
    check_version()
    deepspeed_config = read_deepspeed_config(config)
    section = parse_config(deepspeed_config)
    check_codec(section.compression)
    if not isinstance(model, Recommender):
        check_compression(deepspeed_config, section)
        given = {"max_length": max_length, "sample": sample, "profile": profile, "partition": partition}
        if unused := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"{', '.join(unused)} apply to a Recommender, the model is a {type(model).__name__}")
        own = ("tensor", "sequence_parallel", "spread_head", "attention", "lengths", "lazy_rows", "data_parallel")
        if unused := [key for key in own if getattr(section, key) != RecParallelConfig.model_fields[key].default]:
            raise ConfigError(
                f"recparallel.{', recparallel.'.join(unused)} apply to a Recommender, the model is a {type(model).__name__}"
            )
        built = deepspeed.initialize(model=model, config=deepspeed_config, training_data=training_data, **kwargs)
        attach(built[0], deepspeed_config)
        return built

    check_together(deepspeed_config, section, world_size=_world_size(), num_layers=len(model.layers))
    if section.spread_head:
        check_spreadable(model)
    lazy = lazy_kinds(model) if section.lazy_rows else ()
    if lazy and (refused := [key for key in ("optimizer", "model_parameters") if key in kwargs]):
        raise ConfigError(
            f"recparallel.lazy_rows divides weights among optimizers by itself; {' and '.join(refused)} cannot be given"
        )
    # Refuses what cannot be divided, before any group exists.
    shared_among(model, TensorRanks(0, section.tensor, sequence=section.sequence_parallel))
    if section.attention not in ("model", "fastest"):
        model = with_attention(model, section.attention)
    if training_data is not None and max_length is None:
        raise ConfigError("training_data was given without max_length (positions per sequence)")
    if section.sequence_parallel:
        for length in (max_length, None if sample is None else sample[0].shape[1]):
            check_positions(length or 0, section.tensor)
    if max_length is not None and model.max_length is not None and max_length > model.max_length:
        raise ConfigError(f"max_length is {max_length}, but the model has positions for {model.max_length}")
    warn_about_build_lock()
    world: ReplicaWorld | Elastic | None = None
    if (apart := section.data_parallel).apart:
        worlds = section.worlds(_world_size())
        make_mode(apart, replicas=worlds)
        if apart.gate is not None:
            make_mode(apart.changed(apart.gate.fall_back), replicas=worlds)
        check_codec(apart.compression)
        world = divide_launch(worlds, timeout_s=apart.timeout_s) if apart.elastic is None else None
        deepspeed_config = _of_one_world(deepspeed_config, worlds)
    deepspeed.init_distributed()
    get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if apart.elastic is not None:
        world = Elastic.of(apart)
    if world is not None:
        partition = world.cut() or partition
    if sample is None and training_data is not None and max_length is not None:
        micro_batch = _micro_batch(deepspeed_config, section)
        sample = first_micro_batch(training_data, micro_batch, section, max_length=max_length)
    pipeline_of = functools.partial(
        RecommenderPipeline,
        model,
        num_stages=section.stages,
        partition=section.partition,
        tensor=section.tensor,
        sequence_parallel=section.sequence_parallel,
        spread_head=section.spread_head,
        attention=section.attention,
        seed=section.seed,
        dtype=getattr(torch, precision(deepspeed_config)),
        sample=sample,
        num_micro_batches=_num_micro_batches(deepspeed_config, section),
        schedule=section.schedule,
        wire=section.wire_format,
        optimizer_shares=section.pipelines(_world_size()) if zero_stage(deepspeed_config) else 1,
        sums=GradientSums(
            fp32=(deepspeed_config.get("data_types") or {}).get("grad_accum_dtype") in ("fp32", "float32"),
            rows=zero_stage(deepspeed_config) == 0 and precision(deepspeed_config) != "float16",
            lazy=lazy,
        ),
        profile=profile,
        tells=not isinstance(world, ReplicaWorld) or world.number == 0,
    )
    pipeline = pipeline_of(fixed=partition)
    if isinstance(world, ReplicaWorld):
        world.tell_cut(pipeline.partition)
    elif world is not None and (agreed := world.agree_on(pipeline.partition)) != pipeline.partition:
        pipeline = pipeline_of(fixed=agreed)
    if "optimizer" not in kwargs:
        kwargs.setdefault("model_parameters", [p for p in pipeline.parameters() if p.requires_grad])
    engine, optimizer, _, scheduler = deepspeed.initialize(
        model=pipeline, config=_with_whole_boundaries(deepspeed_config), **kwargs
    )
    handle = _attach(engine, deepspeed_config)
    if world is not None:
        handle.join_replicas(world)
    loader = None
    if training_data is not None and max_length is not None:
        loader = loader_of(engine, training_data, section, max_length=max_length)
        engine.data_iterator = endless(loader)  # on middle stages too: the loader's position is every rank's
    return engine, optimizer, loader, scheduler


def _of_one_world(deepspeed_config: dict[str, Any], count: int) -> dict[str, Any]:
    """A config counts the sequences of all replicas."""
    total = deepspeed_config.get("train_batch_size")
    return deepspeed_config if total is None else {**deepspeed_config, "train_batch_size": total // count}


def _with_whole_boundaries(deepspeed_config: dict[str, Any]) -> dict[str, Any]:
    """Every tensor rank hands its own copy on, and gathers nothing at the other end."""
    whole = {"pipe_partitioned": False, "grad_partitioned": False}
    return {**deepspeed_config, "pipeline": {**(deepspeed_config.get("pipeline") or {}), **whole}}


def attach(
    engine: Any, config: str | Path | dict[str, Any] | None = None, *, hook: Hook | None = None, state: Any = None
) -> Any:
    """Put recparallel on an engine that exists: one of DeepSpeed, or the DistributedDataParallel of torch (``ddp.py``) or
    Megatron-Core (``megatron.py``), which take a gradient hook alone. For DeepSpeed:

    * a pipeline of ours runs the schedule that it was cut for (``eager_schedule.py``);
    * a pipeline engine gets the mean over targets, seeds by micro-batch and phase times (``training_step.py``), and an
      evaluation that takes any batch size (``evaluation_step.py``);
    * look-ups in item tables keep their gradients by rows (``row_gradients.py``), and bf16 gradients are added up where autograd
      adds them (``bf16_accumulation.py``);
    * with ``lazy_rows``, item tables are stepped by rows, beside DeepSpeed's optimizer (``lazy_rows.py``);
    * copies of a tied table exchange the rows that a step has touched (``tied_exchange.py``);
    * fp32 pipelines without ZeRO get a gradient norm that counts every parameter once, and bf16 ones a norm for stages that hold
      nothing but a tied copy (``clipping.py``);
    * a gradient hook averages the gradients: the one given, or the one that ``config`` names under ``compression``;
    * with the partition method ``adaptive``, layers move while the model trains (``rebalancing.py``).

    Args:
        config: DeepSpeed JSON with a ``"recparallel"`` section.
        hook: any PyTorch DDP communication hook; its ``state`` may hold ``None`` for a group, recparallel binds the
            right one.

    Returns:
        a handle, also at ``engine.recparallel``; ``handle.remove()`` takes everything off again.

    Raises:
        HookError: the hook cannot run on this engine, or is bound to another group.
        ConfigError: the config is wrong.
    """
    if isinstance(engine, DistributedDataParallel) or is_megatron_ddp(engine):
        return _attach_hook_alone(engine, config, hook, state)
    if (mode := parse_config(read_deepspeed_config(config or {})).data_parallel).apart:
        raise ConfigError(
            f"recparallel.data_parallel.mode is {mode.mode!r}: replicas are worlds of their own, and this engine was made in one; "
            "use recparallel.initialize with a Recommender"
        )
    return _attach(engine, config, hook=hook, state=state)


def _attach(
    engine: Any, config: str | Path | dict[str, Any] | None, *, hook: Hook | None = None, state: Any = None
) -> Handle:
    check_version()
    if getattr(engine, "recparallel", None) is not None:
        raise HookError("recparallel is on this engine already; take it off first: engine.recparallel.remove()")
    section = parse_config(read_deepspeed_config(config or {}))
    if hook is not None and section.compression is not None:
        raise ConfigError("both a hook and recparallel.compression were given; use one")
    bindings = Bindings()
    handle = None
    try:
        group = data_parallel_group(engine)
        bound = bind(hook, state, group) if hook is not None else configured_hook(section.compression, group)
        if bound is not None and dist.get_world_size(group) == 1:
            logger.info("gradient hook %r is left out: there is one replica, nothing is exchanged", bound.name)
            bound = None
        elif bound is not None:
            _refuse_unsupported(engine, bound)
            check_compression_with_zero(section, engine.zero_optimization_stage())
        if isinstance(engine, PipelineEngine):
            if _runs_eagerly(engine, section):
                dynamic = section.lengths == "dynamic"
                bind_eager_schedule(engine, bindings, wire=section.wire_format, dynamic=dynamic)
            bind_training_step(engine, bindings, packed=section.lengths == "packed")
            bind_evaluation_step(engine, bindings)
        rows = LazyRows(engine, group) if trains_lazy_rows(engine.module, asked=section.lazy_rows) else None
        if rows is not None:
            rows.bind(bindings)
        shares = None
        if (asked := section.data_parallel.shares) is not None:
            shares = Shares(engine, None if asked == "by_speed" else asked)
            shares.bind(bindings)
        handle = Handle(engine, bound, section, bindings, rows=rows, shares=shares)
        bindings.bind(engine, "recparallel", handle)
        if section.partition.adaptive and _may_rebalance(engine):
            check_adaptive(read_deepspeed_config(config or {}), section)
            Ranks(error=ConfigError).together(lambda: check_movable(engine))
            bind_rebalancing(engine, section.partition.rebalance, bindings)
        handle.bind_stage()
    except Exception:
        if handle is not None:
            handle.unbind_stage()
        bindings.remove()
        raise
    return handle


def _attach_hook_alone(
    module: Any, config: str | Path | dict[str, Any] | None, hook: Hook | None, state: Any
) -> DDPHandle | MegatronHandle:
    """Of a config, ``compression`` is read."""
    section = parse_config(read_deepspeed_config(config or {}))
    if hook is not None and section.compression is not None:
        raise ConfigError("both a hook and recparallel.compression were given; use one")
    if section.compression is not None and section.compression.bucket_size is not None:
        raise ConfigError(
            f"recparallel.compression.bucket_size is {section.compression.bucket_size}, but buckets are made by the "
            "DistributedDataParallel; use its bucket_cap_mb, or Megatron's bucket_size"
        )
    if unused := sorted(section.model_fields_set - {"compression"}):
        raise ConfigError(
            f"recparallel.{', recparallel.'.join(unused)} beside a {type(module).__name__}: it takes compression alone"
        )
    of_megatron = is_megatron_ddp(module)
    group = megatron.group_of(module) if of_megatron else ddp.group_of(module)
    bound = bind(hook, state, group) if hook is not None else configured_hook(section.compression, group)
    world = dist.get_world_size(group)
    bound = bound if world > 1 else None
    return MegatronHandle(module, bound, world=world) if of_megatron else DDPHandle(module, bound)


def _may_rebalance(engine: Any) -> bool:
    """There is more than one stage.

    Raises:
        ConfigError: it is no pipeline of ours, or one without a profile.
    """
    module = engine.module
    if not isinstance(module, RecommenderPipeline):
        raise ConfigError(
            f"recparallel.partition.method 'adaptive' moves layers of a Recommender, the model is a {type(module).__name__}"
        )
    if engine.num_stages > 1 and module.profile is None:
        raise ConfigError(
            f"recparallel.partition.method is 'adaptive', but this pipeline was built with {module.partition.method!r} and knows "
            "no costs; build it by recparallel.initialize with the same config"
        )
    return bool(engine.num_stages > 1)


def _runs_eagerly(engine: Any, section: RecParallelConfig) -> bool:
    """Our pipelines hand one tensor of one shape on; someone else's keeps DeepSpeed's schedule.

    Raises:
        ConfigError: the pipeline was cut for another schedule than the config asks for, or its shapes change from one
            micro-batch to the next.
    """
    module = engine.module
    built_for = module.schedule if isinstance(module, RecommenderPipeline) else "1f1b"
    if "schedule" in section.model_fields_set and section.schedule != built_for:
        raise ConfigError(
            f"recparallel.schedule is {section.schedule!r}, but this pipeline was built for {built_for!r}; leave it out, or "
            "build the pipeline by recparallel.initialize with a Recommender"
        )
    eager = built_for == "eager_1f1b" and engine.num_stages > 1
    if eager and engine.dynamic_shape:
        raise ConfigError(
            "recparallel.schedule 'eager_1f1b' posts receives ahead and needs micro-batches of one shape, the pipeline has "
            "dynamic_shape; use '1f1b'"
        )
    return eager


def _refuse_unsupported(engine: Any, hook: BoundHook) -> None:
    stage = engine.zero_optimization_stage()
    if stage > 2:
        raise HookError(f"gradient hook {hook.name!r} runs with ZeRO stages 0, 1 and 2; this engine has stage {stage}")
    if engine.fp16_enabled() and not stage:
        raise HookError(
            f"gradient hook {hook.name!r} with fp16 and ZeRO stage 0: DeepSpeed divides gradients there by a loss scale that "
            "it has not multiplied the loss with; use stage 1 or 2, or bf16"
        )
    if getattr(engine, "torch_autocast_z0_gradscaler", None) is not None:
        raise HookError(
            f"gradient hook {hook.name!r} with torch_autocast in fp16: residuals would mix loss scales; use bfloat16"
        )
    if engine.sequence_parallel_size > 1:
        raise HookError(
            f"gradient hook {hook.name!r} averages over all ranks of the group, but {engine.sequence_parallel_size} of them "
            "share a sequence; use sequence_parallel_size 1"
        )
    if getattr(getattr(engine, "grid", None), "model_parallel_size", 1) > 1 and hook.name != "none":
        raise HookError(
            f"gradient hook {hook.name!r} with tensor ranks: weights that each of them has, such as norms, would be compressed "
            "differently on each and drift apart; use tensor 1"
        )
    if engine.has_moe_layers:
        raise HookError(f"gradient hook {hook.name!r} does not know expert-parallel groups; this engine has MoE layers")
    if engine.optimizer_name() and str(engine.optimizer_name()).lower().startswith(("onebit", "zeroone")):
        raise HookError(
            f"gradient hook {hook.name!r} on {engine.optimizer_name()}, which compresses gradients itself; choose one"
        )
    if not engine.gradient_average or not engine.postscale_gradients() or engine.gradient_predivide_factor() != 1.0:
        raise HookError(
            f"gradient hook {hook.name!r} averages by itself; remove prescale_gradients and gradient_predivide_factor"
        )


def _micro_batch(deepspeed_config: dict[str, Any], section: RecParallelConfig) -> int:
    micro = deepspeed_config.get("train_micro_batch_size_per_gpu")
    if micro:
        return int(micro)
    return int(deepspeed_config["train_batch_size"]) // (
        section.pipelines(_world_size()) * int(deepspeed_config.get("gradient_accumulation_steps") or 1)
    )


def _num_micro_batches(deepspeed_config: dict[str, Any], section: RecParallelConfig) -> int:
    """Of a step, in each replica."""
    accumulation = deepspeed_config.get("gradient_accumulation_steps")
    if accumulation:
        return int(accumulation)
    total = deepspeed_config.get("train_batch_size")
    if not total:
        return 1
    return max(1, int(total) // (section.pipelines(_world_size()) * _micro_batch(deepspeed_config, section)))


def _world_size() -> int:
    """Processes of the launch: from torch where it runs, else from what the launcher told."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
