"""Sum the gradients of a tied table over the stages that hold a copy: only the rows that a step has touched.

DeepSpeed's ``_exec_reduce_tied_grads`` all-reduces the whole table, which for a large catalogue takes longer than the rest of
the step.
"""

import time
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.pipe.schedule import ReduceTiedGrads

from recparallel import events
from recparallel.collectives.rows import RowSum
from recparallel.engines.bindings import Bindings


def bind_tied_exchange(engine: Any, bindings: Bindings) -> None:
    """Take over ``ReduceTiedGrads`` of a pipeline engine, for gradients that DeepSpeed would reduce whole."""
    ties = engine.module.get_tied_weights_and_groups()
    sums = [
        (weight, RowSum(group)) for weight, group in ties if weight.requires_grad and dist.get_world_size(group) > 1
    ]

    def reduce_tied_grads(engine: Any) -> None:
        for weight, row_sum in sums:
            gradient = weight._hp_grad if engine.using_bf16_optimizer else weight.grad
            if gradient is None:
                continue
            start = time.perf_counter()
            way, sent = row_sum.sum(gradient.view(weight.shape))  # the bf16 optimizer's is a piece of a flat buffer
            dense = gradient.numel() * gradient.element_size()
            events.emit(events.TiedExchange(way, dense, sent, time.perf_counter() - start))

    bindings.bind(engine, "_INSTRUCTION_MAP", {**engine._INSTRUCTION_MAP, ReduceTiedGrads: reduce_tied_grads})
