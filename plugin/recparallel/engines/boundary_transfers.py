"""Tensors on their way between two stages: sends that nobody waits for, receives that are posted ahead."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist

from recparallel.compression.wire import wire_format

POSTED_AHEAD = 2
"""Buffers of a receiver: one tensor is on its way in while another waits to be taken."""

MOST_GRADIENTS = 3
"""Gradients of a stage that are on their way at once: those that a receiver has buffers for, and the next."""


def boundary_groups() -> Callable[[str, int], Any]:
    """The group in which ``"forth"`` or ``"back"`` tensors cross a boundary, by its number. Collective.

    On NCCL the operations of a rank in a group run in the order in which they were posted, and a receive posted ahead would hold
    up the sends behind it. So no stage both sends and receives in one group: each direction has one for even boundaries and
    one for odd ones. Elsewhere all tensors cross in the default group.
    """
    if dist.get_backend() != "nccl":
        return lambda direction, boundary: None
    groups = {(direction, parity): dist.new_group() for direction in ("forth", "back") for parity in (0, 1)}
    return lambda direction, boundary: groups[direction, boundary % 2]


class Outbox:
    """What was sent to one rank, in its order. Each tensor is kept until it is known to be there.

    Args:
        destination: the rank.
        group: in which it is sent.
        most: tensors on their way at once; one more waits for the first of them. None is no limit.
        wire: name of what tensors are on their way (:mod:`recparallel.compression.wire`).
    """

    def __init__(self, destination: int, *, group: Any, most: int | None = None, wire: str = "same") -> None:
        self._destination, self._group, self._most, self._wire = destination, group, most, wire
        self._going: deque[tuple[Any, torch.Tensor]] = deque()

    def put(self, tensor: torch.Tensor) -> None:
        """Send; the tensor must not be changed any more."""
        if self._most is not None and len(self._going) >= self._most:
            self.release()
        tensor = wire_format(self._wire, tensor.dtype).encode(tensor.detach())
        self._going.append((dist.isend(tensor, self._destination, group=self._group), tensor))

    def release(self) -> None:
        """Wait for the first one and forget it. (Whether a send of gloo is over, only waiting tells.)"""
        self._going.popleft()[0].wait()

    def wait(self) -> None:
        """Until all are out."""
        while self._going:
            self.release()


class Inbox:
    """What comes from one rank in a step, in its order.

    Args:
        source: the rank.
        group: in which they are sent.
        wire: name of what they are on their way.
    """

    def __init__(self, source: int, *, group: Any, wire: str = "same") -> None:
        self._source, self._group, self._wire = source, group, wire
        self._to_post: deque[torch.Size] | None = None
        self._coming: deque[tuple[Any, torch.Tensor, torch.Size]] = deque()

    def expect(self, shapes: Iterable[torch.Size], *, dtype: torch.dtype, device: torch.device) -> None:
        """From now on it is known what will come; a second call does nothing."""
        if self._to_post is None:
            self._to_post, self._dtype, self._device = deque(shapes), dtype, device
            self._post()

    def take(self) -> torch.Tensor:
        """The next one, in memory of its own."""
        work, tensor, shape = self._coming.popleft()
        self._post()
        work.wait()
        return wire_format(self._wire, self._dtype).decode(tensor, shape, self._dtype)

    def _post(self) -> None:
        crossing = wire_format(self._wire, self._dtype)
        while self._to_post and len(self._coming) < POSTED_AHEAD:
            shape = self._to_post.popleft()
            tensor = torch.empty(crossing.numbers(shape), dtype=crossing.dtype, device=self._device)
            self._coming.append((dist.irecv(tensor, self._source, group=self._group), tensor, shape))
