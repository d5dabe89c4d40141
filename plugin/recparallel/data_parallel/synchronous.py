"""Synchronous data parallelism: average every bucket in every step, dense or through a codec."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from recparallel.collectives.base import Aggregation, Summed
from recparallel.collectives.bucket import Bucket
from recparallel.collectives.choice import BY_CODEC, aggregation_for
from recparallel.compression import Codec
from recparallel.compression.memory import Memory
from recparallel.data_parallel.hook import BoundHook


def dense_hook(group: dist.ProcessGroup | None) -> BoundHook:
    """The plain average: sum, then scale by one over the number of replicas, as DeepSpeed does by default."""
    return BoundHook("none", _average_densely, group)


def _average_densely(group: dist.ProcessGroup, bucket: Bucket) -> Future[Tensor]:
    flat = bucket.buffer()
    dist.all_reduce(flat, group=group)
    return _done(flat.mul_(1.0 / dist.get_world_size(group)))


class CompressedHook(BoundHook):
    """:func:`average_compressed` with its state; knows how much it sends."""

    state: "LossyAverage"

    def wire_bytes(self, bucket: Any) -> int:
        return self.state.sent_bytes

    def step_done(self, *, made: bool) -> None:
        self.state.settle(made=made)

    def by_parameter(self) -> dict[str, Tensor]:
        self.state.settle()
        return self.state.by_parameter()

    def set_by_parameter(self, state: dict[str, Tensor]) -> None:
        self.state.set_by_parameter(state)


class LossyAverage(ABC):
    """State of :func:`average_compressed`: what a step keeps for the next, whatever way buckets are summed.

    Args:
        group: the replicas; None where nothing will be sent.
        memory: of what did not get through; None forgets it.
    """

    def __init__(self, group: dist.ProcessGroup | None, *, memory: Memory | None) -> None:
        self.process_group: Any = group
        self.memory = memory
        self.sent_bytes = 0
        self._step = 0
        self._finite: bool | Tensor = True
        self._open = False

    @abstractmethod
    def sum(self, given_N: Tensor, bucket: Bucket, *, step: int) -> Summed:
        """Over the replicas; collective.

        Args:
            given_N: of ``bucket``, with what earlier steps left.
            step: number of the training step.
        """

    def exchange(self, bucket: Bucket) -> Tensor:
        """The average (N,) over the replicas; collective."""
        if bucket.index() == 0 and self._open:
            self.settle()
        self._open = True
        flat_N, memory = bucket.buffer(), self.memory
        given_N = flat_N if memory is None else memory.corrected(flat_N, bucket.names, bucket.sizes())
        given_N = _poisoned(given_N)
        summed = self.sum(given_N, bucket, step=self._step)
        self._finite = _both(self._finite, _is_finite(summed.total_N))
        if memory is not None:
            assert summed.rest_N is not None
            memory.keep(bucket.names, given_N, summed.rest_N)
        self.sent_bytes = summed.sent_bytes
        return summed.total_N.div_(dist.get_world_size(self.process_group))

    def settle(self, *, made: bool = True) -> None:
        """The step is over: what did not get through is kept, if the step was made and all that arrived was finite."""
        if not self._open:
            return
        if self.memory is not None:
            self.memory.settle(self._finite if made else False)
        self._step += 1
        self._open, self._finite = False, True

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"residuals": {} if self.memory is None else self.memory.state_dict(), "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.memory is not None:
            self.memory.load_state_dict(state["residuals"])
        self._step, self._open = state.get("step", 0), False

    def by_parameter(self) -> dict[str, Tensor]:
        """What is kept, flat, by parameter. Override, with :meth:`set_by_parameter`, for more than a memory."""
        return {} if self.memory is None else self.memory.state_dict()

    def set_by_parameter(self, state: dict[str, Tensor]) -> None:
        """Replace :meth:`by_parameter`."""
        if self.memory is not None:
            self.memory.load_state_dict(state)

    def sum_densely(self, given_N: Tensor) -> Summed:
        """In fp32, with nothing left."""
        total_N = given_N.to(torch.promote_types(given_N.dtype, torch.float32), copy=True)
        dist.all_reduce(total_N, group=self.process_group)
        rest_N = None if self.memory is None else torch.zeros_like(total_N)
        return Summed(total_N, rest_N, total_N.numel() * total_N.element_size())


class CompressedAverage(LossyAverage):
    """Buckets go through a codec and an aggregation.

    Args:
        codec: for buckets; those smaller than it can take are summed densely.
        group, memory: see :class:`LossyAverage`.
        aggregation: by name.
        warm_up_steps: over which the codec comes to its own ratio.
    """

    def __init__(
        self,
        codec: Codec,
        group: dist.ProcessGroup | None,
        *,
        memory: Memory | None = None,
        aggregation: str = BY_CODEC,
        warm_up_steps: int = 0,
    ) -> None:
        super().__init__(group, memory=memory)
        self.codec = codec
        self._aggregation_name, self._warm_up_steps = aggregation, warm_up_steps
        self._aggregation: Aggregation | None = None

    def sum(self, given_N: Tensor, bucket: Bucket, *, step: int) -> Summed:
        if len(given_N) < self.codec.least:
            return self.sum_densely(given_N)
        if self._aggregation is None:
            self._aggregation = aggregation_for(self.codec, self._aggregation_name, self.process_group)
        codec = self.codec
        if step < self._warm_up_steps:
            codec = codec.warming_up((step + 1) / (self._warm_up_steps + 1))
        seed = (step * 0x9E3779B1 + bucket.index() * 0x85EBCA6B) % 2**31
        return self._aggregation.sum(codec, given_N, seed=seed, keep_rest=self.memory is not None)


def average_compressed(state: LossyAverage, bucket: Bucket) -> Future[Tensor]:
    """Sum the bucket through the codec, divide by the number of replicas.

    Sums are made in fp32 and returned in the bucket's dtype; every rank gets the same bits.
    """
    flat = bucket.buffer()
    flat.copy_(state.exchange(bucket))
    return _done(flat)


def _poisoned(given_N: Tensor) -> Tensor:
    """All NaN if an element is not finite: a codec might leave that one out, and every rank has to know."""
    largest = torch.linalg.vector_norm(given_N, float("inf"))
    if given_N.device.type == "cpu":
        return given_N if largest.isfinite() else torch.full_like(given_N, float("nan"))
    return given_N + 0 * largest  # without waiting for the device


def _is_finite(total_N: Tensor) -> bool | Tensor:
    finite = torch.linalg.vector_norm(total_N, float("inf")).isfinite()
    return bool(finite) if total_N.device.type == "cpu" else finite


def _both(some: bool | Tensor, other: bool | Tensor) -> bool | Tensor:
    if isinstance(some, bool):
        return some and other if isinstance(other, bool) else other & some
    return some & other


def _done(tensor: Tensor) -> Future[Tensor]:
    future: Future[Tensor] = Future()
    future.set_result(tensor)
    return future
