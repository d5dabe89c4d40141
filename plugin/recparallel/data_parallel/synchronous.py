"""Synchronous data parallelism: average every bucket in every step, dense or through a codec."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from recparallel.collectives.bucket import Bucket
from recparallel.collectives.gathered import sum_of_gathered
from recparallel.compression import Codec
from recparallel.compression.error_feedback import ErrorFeedback
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

    def wire_bytes(self, bucket: Any) -> int:
        flat: Tensor = bucket.buffer()
        size = (
            4 if self.state.feedback is not None else flat.element_size()
        )  # residuals, and what is cut from them, are fp32
        codec: Codec = self.state.codec
        return codec.payload_bytes(flat.numel(), size)

    def by_parameter(self) -> dict[str, Tensor]:
        """Residuals, flat."""
        return {} if self.state.feedback is None else self.state.feedback.state_dict()

    def set_by_parameter(self, state: dict[str, Tensor]) -> None:
        if self.state.feedback is not None:
            self.state.feedback.load_state_dict(state)


class CompressedAverage:
    """State of :func:`average_compressed`: a codec, its residuals, and the replicas' group."""

    def __init__(self, codec: Codec, group: dist.ProcessGroup | None, *, error_feedback: bool = True) -> None:
        self.process_group: Any = group
        self.codec = codec
        self.feedback = ErrorFeedback(codec) if error_feedback else None

    def state_dict(self) -> dict[str, Any]:
        return {} if self.feedback is None else {"residuals": self.feedback.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.feedback is not None:
            self.feedback.load_state_dict(state["residuals"])


def average_compressed(state: CompressedAverage, bucket: Bucket) -> Future[Tensor]:
    """Encode the bucket, sum everyone's payloads, divide by the number of replicas.

    Sums are made in fp32 and returned in the bucket's dtype; every rank gets the same bits.
    """
    flat = bucket.buffer()
    feedback = state.feedback
    payload = state.codec.encode(flat) if feedback is None else feedback.encode(flat, bucket.names, bucket.sizes())
    total = sum_of_gathered(
        state.codec,
        payload,
        size=flat.numel(),
        dtype=torch.promote_types(flat.dtype, torch.float32),
        group=state.process_group,
    )
    flat.copy_(total.div_(dist.get_world_size(state.process_group)))
    return _done(flat)


def _done(tensor: Tensor) -> Future[Tensor]:
    future: Future[Tensor] = Future()
    future.set_result(tensor)
    return future
