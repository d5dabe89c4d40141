"""An engine's optimizer around other parameters.

A plain optimizer has its list of parameters changed and keeps the state of those that stay. DeepSpeed's for ZeRO-1 and bf16 hold
all weights of a stage in flat tensors: these are made anew, around the same torch optimizer, so that learning rates, what a
scheduler holds of it, and the counters stay.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime.torch_autocast import init_autocast_params


def is_changed_in_place(engine: Any) -> bool:
    """The engine's optimizer is a plain one; else it is wrapped, and knows nothing of its parameters after a swap."""
    return engine.optimizer is engine.basic_optimizer


def let_it_train(engine: Any) -> None:
    """Let the optimizer train what parameters the engine's module has now."""
    engine.param_names = {parameter: name for name, parameter in engine.module.named_parameters()}
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    if engine.torch_autocast_enabled():
        init_autocast_params(
            engine, engine.torch_autocast_dtype(), engine.torch_autocast_lower_precision_safe_modules()
        )
    basic = engine.basic_optimizer
    if is_changed_in_place(engine):
        _count_alike(basic)
        basic.param_groups[0]["params"] = trained
        return
    former = engine.optimizer
    settings = {key: value for key, value in basic.param_groups[0].items() if key != "params"}
    former.destroy()
    basic.param_groups[0]["params"] = trained
    basic.state.clear()
    for parameter in trained:
        parameter.grad = None
    with _little_garbage():
        engine._configure_optimizer(basic, trained)
    if engine._support_torch_style_backward:
        engine.optimizer.register_grad_acc_post_hook(engine._backward_post_hook)
    engine.optimizer.param_groups[0].update(settings)  # some are made anew with the values of the config
    if engine.fp16_enabled():
        engine.optimizer.loss_scaler = former.loss_scaler


def _count_alike(optimizer: Any) -> None:
    """DeepSpeed's FusedAdam counts the steps of a group's last parameter alone, which may be another one now."""
    counting = [own for own in optimizer.state.values() if isinstance(own.get("step"), int)]
    for own in counting:
        own["step"] = max(each["step"] for each in counting)


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Let a garbage collection look at new objects alone. DeepSpeed's optimizers call for several while they are made, which take
    seconds among the objects of a training, on rank 0, and the other ranks wait."""
    frozen_already = gc.get_freeze_count() > 0
    if not frozen_already:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen_already:
            gc.unfreeze()


def forget_others(engine: Any) -> None:
    """Drop the state of parameters that the optimizer does not train any more."""
    if is_changed_in_place(engine):
        state, trained = engine.optimizer.state, set(engine.optimizer.param_groups[0]["params"])
        for parameter in [parameter for parameter in state if parameter not in trained]:
            del state[parameter]
