"""Gradients of a step's micro-batches added up where autograd adds them, for DeepSpeed's bf16 optimizer.

``BF16_Optimizer`` (0.19) keeps a second copy of all gradients: after each micro-batch it adds to it what autograd has made, and
zeroes that. Where the copy is bf16 too, autograd by itself gives the same, as both round after each micro-batch. So the adding is
left to autograd, and what it has added up is handed over once a step.
"""

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.pipe.schedule import ReduceTiedGrads

from recparallel.engines.bindings import Bindings


def adds_up_natively(optimizer: Any) -> bool:
    """Whether gradients of this optimizer are added up by autograd."""
    second_copy = isinstance(optimizer, BF16_Optimizer) and not optimizer.immediate_grad_update
    return second_copy and optimizer.grad_acc_dtype == torch.bfloat16


def bind_native_accumulation(engine: Any, bindings: Bindings) -> None:
    """Let a pipeline engine with bf16 accumulation hand its gradients to the optimizer once a step; otherwise do nothing."""
    optimizer = engine.optimizer
    if not adds_up_natively(optimizer):
        return
    add, clear = optimizer.update_hp_grads, optimizer.clear_lp_grads
    reduce = engine._INSTRUCTION_MAP[ReduceTiedGrads]
    bindings.bind(optimizer, "update_hp_grads", lambda clear_lp_grads=False: None)
    bindings.bind(optimizer, "clear_lp_grads", lambda set_to_none=False: None)

    def hand_over_and_reduce(engine: Any) -> None:
        add(clear_lp_grads=False)
        clear(set_to_none=True)
        reduce(engine)

    bindings.bind(engine, "_INSTRUCTION_MAP", {**engine._INSTRUCTION_MAP, ReduceTiedGrads: hand_over_and_reduce})
