"""What recparallel puts on an engine that hangs on the layers of its stage: taken off and put on again when these change."""

from typing import Any

import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from recparallel.config import RecParallelConfig
from recparallel.data_parallel.hook import BoundHook
from recparallel.engines.bf16_accumulation import bind_native_accumulation
from recparallel.engines.bindings import Bindings
from recparallel.engines.clipping import bind_norm, bind_zero_norm, clip_gradients
from recparallel.engines.dense_exchange import bind_exchange_report
from recparallel.engines.gradient_exchange import bind_gradient_hook, data_parallel_group
from recparallel.engines.lazy_rows import LazyRows
from recparallel.engines.pipeline import RecommenderPipeline
from recparallel.engines.row_gradients import bind_row_gradients
from recparallel.engines.spread_head import bind_spread_head
from recparallel.engines.tied_exchange import bind_tied_exchange
from recparallel.engines.training_step import bind_measured_instructions


def bind_stage(
    engine: Any, hook: BoundHook | None, section: RecParallelConfig, rows: LazyRows | None, bindings: Bindings
) -> None:
    """Bind all of it: to the instructions of a pipeline, to its optimizer, and to the exchange of gradients.

    Args:
        rows: tables that DeepSpeed does not train.

    Raises:
        HookError: the engine reduces gradients in a way that the hook cannot take over.
    """
    if hook is not None:
        size = None if section.compression is None else section.compression.bucket_size
        bind_gradient_hook(engine, hook, bindings, by_layer=section.partition.adaptive, bucket_size=size)
    if not isinstance(engine, PipelineEngine):
        return
    if isinstance(engine.module, RecommenderPipeline) and engine.module.partition.spread:
        bind_spread_head(engine, bindings)
    bind_tied_exchange(engine, bindings)
    bind_native_accumulation(engine, bindings)
    bind_row_gradients(engine, bindings)
    lazy = {} if rows is None else {"rows": rows.gradients}
    if rows is not None:
        rows.bind_exchange(bindings)
    if hook is None and dist.get_world_size(data_parallel_group(engine)) > 1:
        bind_exchange_report(engine, bindings)
    if not (engine.fp16_enabled() or engine.bfloat16_enabled() or engine.zero_optimization()):
        bindings.bind(engine, "clip_fp32_gradients", lambda: clip_gradients(engine, **lazy))
    if isinstance(engine.optimizer, BF16_Optimizer):
        bind_norm(engine, bindings, **lazy)
    elif isinstance(engine.optimizer, DeepSpeedZeroOptimizer) and rows is not None:
        bind_zero_norm(engine, bindings, rows.gradients)
    bind_measured_instructions(engine, bindings, wire=section.wire_format)
