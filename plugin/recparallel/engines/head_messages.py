"""What the last stage of a pipeline and the others with rows tell each other about a head that they share: nothing of it blocks.

Each kind of message has a group of its own, in which every rank posts its sends and receives micro-batch by micro-batch: on NCCL
what is posted in a group runs in that order.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel import events
from recparallel.engines.boundary_transfers import Outbox

Kind = Literal["hidden", "summary", "normalizer", "gradient"]

_FROM_LAST: tuple[Kind, ...] = ("hidden", "normalizer")
_TO_LAST: tuple[Kind, ...] = ("summary", "gradient")
_POSTED_AHEAD = 3
_MOST_GRADIENTS = 3
"""Of a stage on their way at once; one more waits for the first."""


class HeadMessages:
    """The messages of one rank. Making it is collective: it makes groups.

    Args:
        engine: a pipeline engine of DeepSpeed.
        sharing: stages with rows, the last one among them; another stage has no messages.
        width: of the hidden states.
        dtype: of the weights.
    """

    def __init__(self, engine: Any, *, sharing: Sequence[int], width: int, dtype: torch.dtype) -> None:
        last = engine.num_stages - 1
        self._is_last = bool(engine.is_last_stage())
        peers = [stage for stage in sharing if stage != last] if self._is_last else [last]
        if engine.stage_id not in sharing:
            peers = []
        self._peers = {int(engine.grid.stage_to_global(stage_id=stage)): stage for stage in peers}
        self._groups = {kind: dist.new_group() for kind in (*_FROM_LAST, *_TO_LAST)}
        sent, self._received = (_FROM_LAST, _TO_LAST) if self._is_last else (_TO_LAST, _FROM_LAST)
        self._out = {
            kind: [
                Outbox(rank, group=self._groups[kind], most=_MOST_GRADIENTS if kind == "gradient" else None)
                for rank in self._peers
            ]
            for kind in sent
        }
        self._width, self._dtype, self._device = width, dtype, engine.device

    def begin(self, num_targets: Sequence[int]) -> None:
        """Expect what a step will bring, by the number of targets of each of its micro-batches."""
        exact = torch.promote_types(self._dtype, torch.float32)
        shapes: dict[Kind, tuple[list[tuple[int, ...]], torch.dtype]] = {
            "hidden": ([(count, self._width) for count in num_targets], self._dtype),
            "summary": ([(2, count) for count in num_targets], exact),
            "normalizer": ([(count,) for count in num_targets], exact),
            "gradient": ([(count, self._width) for count in num_targets], self._dtype),
        }
        self._own: dict[Kind, deque[Tensor]] = {kind: deque() for kind in shapes}
        self._coming = {
            kind: [_Coming(rank, self._groups[kind], *shapes[kind], self._device) for rank in self._peers]
            for kind in self._received
        }
        for _ in range(_POSTED_AHEAD):
            for coming in self._coming.values():
                for each in coming:
                    each.post()

    def send(self, kind: Kind, tensor: Tensor) -> None:
        """To all that wait for it; what the last stage has for itself stays here."""
        tensor = tensor.contiguous()
        if self._is_last:
            self._own[kind].append(tensor)
        if not tensor.numel() or kind not in self._out:
            return
        for box, stage in zip(self._out[kind], self._peers.values()):
            box.put(tensor)
            if events.observed():
                events.emit(events.Transfer("send", stage, tensor.numel() * tensor.element_size(), 0.0))

    def take(self, kind: Kind) -> list[Tensor]:
        """Of the next micro-batch: what the last stage sent, or on it what all stages have, in their order."""
        received = [coming.take() for coming in self._coming.get(kind, ())]
        return received + ([self._own[kind].popleft()] if self._is_last else [])

    def arrived(self, kind: Kind) -> None:
        """The first of those on their way is known to be there, by the answer: it is kept no longer."""
        for box in self._out[kind]:
            box.release()

    def finish(self) -> None:
        """Wait for what was sent."""
        for boxes in self._out.values():
            for box in boxes:
                box.wait()


class _Coming:
    """Tensors of known shapes that come from one rank in a step, in their order."""

    def __init__(
        self, source: int, group: Any, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._source, self._group, self._dtype, self._device = source, group, dtype, device
        self._to_post = deque(shapes)
        self._posted: deque[tuple[Any, Tensor]] = deque()

    def post(self) -> None:
        """Be ready for one more, if one will come."""
        if self._to_post:
            tensor = torch.empty(self._to_post.popleft(), dtype=self._dtype, device=self._device)
            # A micro-batch without targets has nothing to send.
            work = dist.irecv(tensor, self._source, group=self._group) if tensor.numel() else None
            self._posted.append((work, tensor))

    def take(self) -> Tensor:
        """The next one; one more is posted."""
        work, tensor = self._posted.popleft()
        self.post()
        if work is not None:
            work.wait()
        return tensor
