"""Run a gradient hook in torch's DistributedDataParallel, beside the backward pass.

DDP asks for a hook bucket by bucket, from within backward, and waits for all of them at its end. On a CPU a thread of ours
exchanges one bucket after the other meanwhile: the pass goes on, and collectives keep one order on all ranks, also those that
a hook chains.
On other devices collectives do not wait by themselves, and the hook runs where it is called.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from recparallel.data_parallel.hook import BoundHook
from recparallel.engines.bucket_exchange import exchange_bucket
from recparallel.engines.hook_state import HookState
from recparallel.errors import HookError

_OURS = "recparallel_dispatcher"


class DDPHandle(HookState):
    """What recparallel put on a DistributedDataParallel module.

    Attributes:
        module: the module.
        hook: that averages its gradients; None where there is one replica.
    """

    def __init__(self, module: DistributedDataParallel, hook: BoundHook | None) -> None:
        self.module, self.hook = module, hook
        self._dispatcher = _dispatcher_of(module)
        self._dispatcher.hook = hook
        module.recparallel = self  # type: ignore[assignment]

    def remove(self) -> None:
        """DDP's own all-reduce from the next step on. A second call does nothing."""
        if getattr(self.module, "recparallel", None) is self:
            self._dispatcher.hook = None
            del self.module.recparallel


def group_of(module: DistributedDataParallel) -> dist.ProcessGroup:
    """The replicas of a module.

    Raises:
        HookError: the module has a communication hook, or recparallel is on it.
    """
    if getattr(module, "recparallel", None) is not None:
        raise HookError("recparallel is on this module already; take it off first: module.recparallel.remove()")
    if not hasattr(module, _OURS) and module.logger is not None and module._comm_hooks:
        raise HookError("this DistributedDataParallel has a communication hook already; make it without one")
    return own_group(module.process_group)


def own_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Another group of the same ranks: what a thread of ours exchanges must not meet what the host exchanges meanwhile."""
    return dist.new_group(dist.get_process_group_ranks(group), use_local_synchronization=True)


class _Dispatcher:
    """State of the hook that DDP calls; a module takes one for its whole life."""

    def __init__(self, module: DistributedDataParallel) -> None:
        self.hook: BoundHook | None = None
        self._group = module.process_group
        self._names = {id(p): name for name, p in module.module.named_parameters()}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recparallel-exchange")

    def exchange(self, bucket: Any) -> Future[Tensor]:
        """The average of a bucket, to come."""
        hook, flat, params = self.hook, bucket.buffer(), bucket.parameters()
        if hook is None:
            return allreduce_hook(self._group, bucket)
        index, last, names = bucket.index(), bucket.is_last(), [self._names[id(p)] for p in params]
        future: Future[Tensor] = Future() if flat.device.type == "cpu" else Future(devices=[flat.device])

        def run() -> None:
            try:
                flat.copy_(exchange_bucket(hook, flat, params, names, index=index, last=last))
                future.set_result(flat)
            except Exception as error:
                # DDP would go on with what this turns into; a rank that has lost a message must not train on.
                future.set_exception(error)  # type: ignore[arg-type]  # torch declares it as the result's

        if flat.device.type == "cpu":
            self._thread.submit(run)
        else:
            run()
        return future


def _dispatch(dispatcher: _Dispatcher, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
    return dispatcher.exchange(bucket)


def _dispatcher_of(module: DistributedDataParallel) -> _Dispatcher:
    if not hasattr(module, _OURS):
        dispatcher = _Dispatcher(module)
        module.register_comm_hook(dispatcher, _dispatch)
        object.__setattr__(module, _OURS, dispatcher)
    found: _Dispatcher = getattr(module, _OURS)
    return found
