"""Synchronous data parallelism: average every bucket in every step, dense or through a codec."""

import zlib
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from recparallel.collectives.base import Aggregation, exact_type
from recparallel.collectives.bucket import Bucket
from recparallel.collectives.choice import BY_CODEC, aggregation_for
from recparallel.collectives.hierarchical import NodeGroups
from recparallel.compression import Codec
from recparallel.compression.error_feedback import ErrorFeedback
from recparallel.compression.memory import Memory
from recparallel.compression.pieces import pieces
from recparallel.data_parallel.hook import BoundHook


def dense_hook(group: dist.ProcessGroup | None) -> BoundHook:
    """The plain average: sum, then scale by one over the number of replicas, as DeepSpeed does by default."""
    return _DenseHook("none", _average_densely, group)


class _DenseHook(BoundHook):
    @property
    def leaves_rows_apart(self) -> bool:
        return True


def _average_densely(group: dist.ProcessGroup, bucket: Bucket) -> Future[Tensor]:
    flat = bucket.buffer()
    dist.all_reduce(flat, group=group)
    return _done(flat.mul_(1.0 / dist.get_world_size(group)))


class CompressedHook(BoundHook):
    """:func:`average_compressed` with its state; knows how much it sends."""

    state: "LossyAverage"

    @property
    def leaves_rows_apart(self) -> bool:
        """Not with momentum of its own."""
        return self.state.memory is None or isinstance(self.state.memory, ErrorFeedback)

    def wire_bytes(self, bucket: Any) -> int:
        return self.state.sent_bytes

    def step_done(self, *, made: bool) -> None:
        self.state.settle(made=made)

    def by_parameter(self) -> dict[str, Tensor]:
        self.state.settle()
        return self.state.by_parameter()

    def set_by_parameter(self, state: dict[str, Tensor]) -> None:
        self.state.set_by_parameter(state)


@dataclass(frozen=True)
class Sent:
    """Of an exchange.

    Attributes:
        num_bytes: that this rank handed to collectives.
        dense: nothing was left out on purpose.
        finite: whether all that was given, on every rank, is finite, where the sum has found out by the way, and has made an
            average of itself, not a number where it is not; None leaves both to a pass over the sum.
    """

    num_bytes: int
    dense: bool = False
    finite: bool | Tensor | None = None


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
        self._seen: Counter[tuple[str, ...]] = Counter()

    shows_what_is_given: ClassVar[bool] = False
    """A number that is not finite shows in what :meth:`sum` sends, wherever it was; else all is made to be none before."""

    @abstractmethod
    def sum(self, given_N: Tensor, total_N: Tensor, bucket: Bucket, *, step: int) -> Sent:
        """Over the replicas; collective.

        Args:
            given_N: of ``bucket``, with what earlier steps left; where there is a memory, it becomes what it is to keep.
            total_N: is overwritten with the sum; it may share memory with ``given_N`` where there is no memory.
            step: number of the training step.
        """

    def leaves_to_host(self, bucket: Bucket, *, step: int) -> bool:
        """Choose how the bucket goes; collective. True is the host's own sum: nothing is left out, and nothing is kept from steps
        before. Override for a state that has the choice."""
        return False

    def exchange(self, bucket: Bucket) -> None:
        """Replace the bucket by its average over the replicas; collective."""
        if bucket.index() == 0 and self._open:
            self.settle()
        self._open = True
        flat_N, memory = bucket.buffer(), self.memory
        if self.leaves_to_host(bucket, step=self._step):
            total_N, sent = flat_N, Sent(flat_N.numel() * flat_N.element_size())
            self.sum_as_host(flat_N)
        else:
            given_N = flat_N if memory is None else memory.corrected(flat_N, bucket.names, bucket.sizes())
            if not self.shows_what_is_given:
                _poison(given_N)
            exact = exact_type(flat_N.dtype)
            total_N = flat_N if flat_N.dtype == exact else torch.empty_like(flat_N, dtype=exact)
            sent = self.sum(given_N, total_N, bucket, step=self._step)
            if memory is not None:
                memory.keep(bucket.names, given_N, dense=sent.dense)
        if sent.finite is None:
            finite = _average_into(flat_N, total_N, dist.get_world_size(self.process_group))
        else:
            finite = sent.finite
            if total_N is not flat_N:
                flat_N.copy_(total_N)
        self._finite = _both(self._finite, finite)
        self.sent_bytes = sent.num_bytes

    def seed(self, bucket: Bucket, *, step: int) -> int:
        """Of what a codec draws for a bucket: the same on every rank, in whatever order buckets come, and another one for each
        micro-batch that is exchanged."""
        self._seen[bucket.names] += 1
        own = zlib.crc32("/".join(bucket.names).encode()) + 0xC2B2AE35 * self._seen[bucket.names]
        return (step * 0x9E3779B1 + own) % 2**31

    def settle(self, *, made: bool = True) -> None:
        """The step is over: what did not get through is kept, if the step was made and all that arrived was finite."""
        if not self._open:
            return
        if self.memory is not None:
            self.memory.settle(self._finite if made else False)
        self._step += 1
        self._open, self._finite = False, True
        self._seen.clear()

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        kept = {} if self.memory is None else self.memory.state_dict()
        return {"residuals": {name: tensor.clone() for name, tensor in kept.items()}, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.memory is not None:
            self.memory.load_state_dict(state["residuals"])
        self._step, self._open, self._finite = state.get("step", 0), False, True
        self._seen.clear()

    def by_parameter(self) -> dict[str, Tensor]:
        """What is kept, flat, by parameter, until the next exchange. Override, with :meth:`set_by_parameter`, for more than a
        memory."""
        return {} if self.memory is None else self.memory.state_dict()

    def set_by_parameter(self, state: dict[str, Tensor]) -> None:
        """Replace :meth:`by_parameter`."""
        if self.memory is not None:
            self.memory.load_state_dict(state)

    def sum_as_host(self, flat_N: Tensor) -> None:
        """In place."""
        dist.all_reduce(flat_N, group=self.process_group)

    def sum_densely(self, given_N: Tensor, total_N: Tensor, dtype: torch.dtype) -> Sent:
        """In ``dtype``, that of the bucket, as the host would; what rounding to it leaves is kept."""
        sent_N = total_N.copy_(given_N) if total_N.dtype == dtype else given_N.to(dtype, copy=True)
        if self.memory is not None:
            given_N.sub_(sent_N)
        dist.all_reduce(sent_N, group=self.process_group)
        total_N.copy_(sent_N)
        return Sent(sent_N.numel() * sent_N.element_size(), dense=True)


class CompressedAverage(LossyAverage):
    """Buckets go through a codec and an aggregation.

    Args:
        codec: for buckets; those smaller than it can take are summed densely.
        group, memory: see :class:`LossyAverage`.
        aggregation: by name.
        nodes: for ``hierarchical``.
        warm_up_steps: over which the codec comes to its own ratio.
    """

    def __init__(
        self,
        codec: Codec,
        group: dist.ProcessGroup | None,
        *,
        memory: Memory | None = None,
        aggregation: str = BY_CODEC,
        nodes: NodeGroups | None = None,
        warm_up_steps: int = 0,
    ) -> None:
        super().__init__(group, memory=memory)
        self.codec = codec
        self._aggregation_name, self._nodes, self._warm_up_steps = aggregation, nodes, warm_up_steps
        self._aggregation: Aggregation | None = None

    def sum(self, given_N: Tensor, total_N: Tensor, bucket: Bucket, *, step: int) -> Sent:
        if len(given_N) < self.codec.least:
            return self.sum_densely(given_N, total_N, bucket.buffer().dtype)
        if self._aggregation is None:
            self._aggregation = aggregation_for(
                self.codec, self._aggregation_name, self.process_group, nodes=self._nodes
            )
        codec = self.codec
        if step < self._warm_up_steps:
            codec = codec.warming_up((step + 1) / (self._warm_up_steps + 1))
        seed, keep_rest = self.seed(bucket, step=step), self.memory is not None
        return Sent(self._aggregation.sum(codec, given_N, total_N, seed=seed, keep_rest=keep_rest))


def average_compressed(state: LossyAverage, bucket: Bucket) -> Future[Tensor]:
    """Sum the bucket through the codec, divide by the number of replicas.

    Sums are made in fp32 and returned in the bucket's dtype; every rank gets the same bits.
    """
    state.exchange(bucket)
    return _done(bucket.buffer())


def _poison(given_N: Tensor) -> None:
    """All becomes NaN if an element is not finite: a codec might leave that one out, and every rank has to know."""
    if given_N.device.type != "cpu":
        least, most = torch.aminmax(given_N)
        given_N.add_(0 * least + 0 * most)  # without waiting for the device
    elif not _is_finite(given_N):
        given_N.fill_(float("nan"))


def _average_into(flat_N: Tensor, total_N: Tensor, count: int) -> bool | Tensor:
    """Write ``total_N / count`` to ``flat_N``, which may be the same; whether the total is finite."""
    finite: bool | Tensor = True
    for total, flat in pieces(total_N, flat_N):
        finite = _both(finite, _is_finite(total))
        torch.div(total, count, out=flat)
    return finite


def _is_finite(total_N: Tensor) -> bool | Tensor:
    least, most = torch.aminmax(total_N)  # NaN is both; several times as fast as a norm
    finite = least.isfinite() & most.isfinite()
    return bool(finite) if total_N.device.type == "cpu" else finite


def _both(some: bool | Tensor, other: bool | Tensor) -> bool | Tensor:
    if isinstance(some, bool):
        return some and other if isinstance(other, bool) else other & some
    return some & other


def _done(tensor: Tensor) -> Future[Tensor]:
    future: Future[Tensor] = Future()
    future.set_result(tensor)
    return future
