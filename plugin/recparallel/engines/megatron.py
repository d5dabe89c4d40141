"""Run a gradient hook in Megatron-Core's DistributedDataParallel, with and without its distributed optimizer.

The seam is ``start_grad_sync`` of a bucket group (``distributed/param_and_grad_buffer.py``): it all-reduces or reduce-scatters
``bucket.grad_data``. Here the hook's average is written to all of it, so whichever part the optimizer reads is there. With
``overlap_grad_reduce`` it is called from within backward, and ``finish_grad_sync`` waits for a handle: on a CPU a thread of ours
exchanges one bucket after the other meanwhile.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from recparallel.data_parallel.hook import BoundHook
from recparallel.engines.bindings import Bindings
from recparallel.engines.bucket_exchange import exchange_bucket
from recparallel.engines.ddp import own_group
from recparallel.engines.hook_state import HookState
from recparallel.errors import HookError


class MegatronHandle(HookState):
    """What recparallel put on a Megatron-Core DistributedDataParallel module.

    Attributes:
        module: the module.
        hook: that averages its gradients; None where there is one replica.
    """

    def __init__(self, module: Any, hook: BoundHook | None, *, world: int) -> None:
        self.module, self.hook = module, hook
        self._bindings = Bindings()
        self._bindings.bind(module, "recparallel", self)
        if hook is not None:
            _Exchange(module, hook, world).bind(self._bindings)

    def remove(self) -> None:
        """Megatron's own reduction from the next step on. A second call does nothing."""
        self._bindings.remove()


def is_megatron_ddp(engine: object) -> bool:
    """Whether this is a module of Megatron-Core's; it is not imported for that."""
    return any(
        cls.__name__ == "DistributedDataParallel" and cls.__module__.startswith("megatron.core.distributed")
        for cls in type(engine).__mro__
    )


def group_of(module: Any) -> dist.ProcessGroup:
    """The replicas of a module.

    Raises:
        HookError: recparallel is on it, or it reduces gradients in a way that a hook cannot take over.
    """
    if getattr(module, "recparallel", None) is not None:
        raise HookError("recparallel is on this module already; take it off first: module.recparallel.remove()")
    if getattr(module, "expert_parallel_bucket_groups", None):
        raise HookError("a gradient hook does not know expert-parallel groups; this module has experts")
    if getattr(module.config, "fp16", False):
        raise HookError(
            "a gradient hook on a Megatron module in fp16: residuals would mix loss scales; use bf16 or fp32"
        )
    if module.ddp_config.num_distributed_optimizer_instances > 1:
        raise HookError(
            "a gradient hook runs with num_distributed_optimizer_instances 1, got "
            f"{module.ddp_config.num_distributed_optimizer_instances}"
        )
    if getattr(module.config, "tensor_model_parallel_size", 1) > 1:
        raise HookError(
            "a gradient hook with tensor ranks: weights that each of them has, such as norms, would be compressed differently on "
            f"each and drift apart; use tensor_model_parallel_size 1, got {module.config.tensor_model_parallel_size}"
        )
    first = module.bucket_groups[0]
    return own_group(
        first.intra_distributed_optimizer_instance_group
        if module.ddp_config.use_distributed_optimizer
        else first.data_parallel_group
    )


class _Pending:
    """An exchange that Megatron waits for."""

    def __init__(self, future: "Future[None]") -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result()


class _Exchange:
    """Takes over ``start_grad_sync`` of every bucket group."""

    def __init__(self, module: Any, hook: BoundHook, world: int) -> None:
        self._hook, self._world, self._config = hook, world, module.ddp_config
        self._groups = list(module.bucket_groups)
        self._names = {id(p): name for name, p in module.module.named_parameters()}
        self._num_buckets = sum(len(group.buckets) for group in self._groups)
        self._count = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recparallel-exchange")

    def bind(self, bindings: Bindings) -> None:
        """Until the bindings are removed."""
        for group in self._groups:
            bindings.bind(group, "start_grad_sync", self._start(group))
        bindings.on_remove(self._thread.shutdown)

    def _start(self, group: Any) -> Callable[..., None]:
        def start_grad_sync(force_all_reduce: bool | None = False) -> None:
            if group.is_first_batch and group.grad_reduce_handle is not None:
                return
            if self._config.check_for_nan_in_grad or self._config.check_for_large_grads:
                group.check_grads(
                    check_for_nan_or_inf=self._config.check_for_nan_in_grad,
                    check_for_large=self._config.check_for_large_grads,
                )
            numbers = range(self._count, self._count + len(group.buckets))
            self._count = (self._count + len(group.buckets)) % self._num_buckets
            beside = self._config.overlap_grad_reduce and group.buckets[0].grad_data.device.type == "cpu"
            if beside:
                group.grad_reduce_handle = _Pending(self._thread.submit(self._exchange, group.buckets, numbers))
            else:
                self._exchange(group.buckets, numbers)
                done: Future[None] = Future()
                done.set_result(None)
                group.grad_reduce_handle = _Pending(done) if self._config.overlap_grad_reduce else None

        return start_grad_sync

    def _exchange(self, buckets: Sequence[Any], numbers: Sequence[int]) -> None:
        for number, bucket in zip(numbers, buckets):
            # ``param_to_index`` leaves out what pads parameters under the distributed optimizer.
            params = sorted(bucket.params, key=lambda param: int(param.main_grad.data_ptr()))
            parts, names = [param.main_grad.view(-1) for param in params], [self._names[id(p)] for p in params]
            last = number == self._num_buckets - 1
            averaged = exchange_bucket(self._hook, torch.cat(parts), params, names, index=number, last=last)
            # Megatron scales first and then sums, or averages in the collective.
            summed = 1 if self._config.average_in_collective else self._world
            averaged = averaged * (bucket.gradient_scaling_factor * summed)
            for part, average in zip(parts, averaged.split([len(part) for part in parts])):
                part.copy_(average)
