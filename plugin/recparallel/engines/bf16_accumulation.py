"""Gradients of a step's micro-batches added up in place, for DeepSpeed's bf16 optimizer.

``BF16_Optimizer`` (0.19) keeps a second copy of all gradients: after each micro-batch it adds to it what autograd has made, and
zeroes that. Where the copy is bf16 too, autograd by itself gives the same, as both round after each micro-batch. So the copy is
what autograd adds to: there is one of each gradient, and nothing to hand over.
"""

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.pipe.schedule import ReduceTiedGrads

from recparallel.engines.bindings import Bindings


def adds_up_natively(optimizer: Any) -> bool:
    """Whether gradients of this optimizer are added up by autograd."""
    if not isinstance(optimizer, BF16_Optimizer) or optimizer.immediate_grad_update:
        return False
    corrected = optimizer.autoep_folding_tp_group is not None  # by update_hp_grads, which does not run then
    return optimizer.grad_acc_dtype == torch.bfloat16 and not corrected


def bind_native_accumulation(engine: Any, bindings: Bindings) -> None:
    """Let autograd add gradients up in the optimizer's copy, where a pipeline engine accumulates in bf16; otherwise do nothing."""
    optimizer = engine.optimizer
    if not adds_up_natively(optimizer):
        return
    clear = optimizer.clear_lp_grads
    reduce = engine._INSTRUCTION_MAP[ReduceTiedGrads]
    bindings.bind(optimizer, "update_hp_grads", lambda clear_lp_grads=False: None)
    bindings.bind(optimizer, "clear_lp_grads", lambda set_to_none=False: None)
    bindings.on_remove(lambda: clear(set_to_none=True))
    _add_up_in_the_copies(optimizer)

    def hand_over_and_reduce(engine: Any) -> None:
        _add_up_in_the_copies(optimizer)
        _say_that_they_are_there(optimizer)
        reduce(engine)

    bindings.bind(engine, "_INSTRUCTION_MAP", {**engine._INSTRUCTION_MAP, ReduceTiedGrads: hand_over_and_reduce})


@torch.no_grad()
def _add_up_in_the_copies(optimizer: Any) -> None:
    """Make every weight's gradient a view of the optimizer's copy, with what came together elsewhere."""
    for weights, gradients in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients):
        for weight, gradient in zip(weights, gradients):
            if weight.grad is not None and weight.grad.data_ptr() != gradient.data_ptr():
                gradient.add_(weight.grad.view(gradient.shape))
            weight.grad = gradient.view(weight.shape)


def _say_that_they_are_there(optimizer: Any) -> None:
    """As ``BF16_Optimizer._update_hp_grad`` (0.19) does behind its addition."""
    for number, (weights, gradients) in enumerate(zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients)):
        for weight, gradient in zip(weights, gradients):
            weight._hp_grad = gradient
        optimizer.fp32_groups_has_gradients[number] = [True] * len(weights)
