"""The hook contract: a PyTorch DDP communication hook, ``hook(state, bucket) -> Future[Tensor]``, bound to a process
group."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from recparallel.errors import HookError

Hook = Callable[[Any, Any], Future[Tensor]]


@dataclass
class BoundHook:
    """A hook with its state. The state's process group is the data-parallel group of the engine it runs on.

    Torch's hooks take ``None`` for the whole world, which under a pipeline would sum gradients of different stages.
    :func:`bind` puts the right group in.
    """

    name: str
    hook: Hook
    state: Any

    @property
    def leaves_rows_apart(self) -> bool:
        """Whether an engine may exchange few touched rows of a table by itself, so that the table is in a bucket in one step and in
        none in the next. Override for a hook that does not mind."""
        return False

    def codec_of(self, bucket: Any) -> str:
        """How ``bucket`` travelled, asked after the call. Override for a hook that has a choice."""
        return self.name

    def wire_bytes(self, bucket: Any) -> int:
        """Bytes that this rank handed to collectives for ``bucket``, asked after the call. Override for a hook that
        sends less."""
        flat: Tensor = bucket.buffer()
        return flat.numel() * flat.element_size()

    def step_done(self, *, made: bool) -> None:
        """The training step is over; ``made`` is False where the optimizer skipped it. Override for a hook that keeps something."""

    def by_parameter(self) -> dict[str, Tensor] | None:
        """What the hook keeps between steps, by parameter, so that it can move with it to another rank; None where it may keep
        something else. Override, with :meth:`set_by_parameter`, for a hook that keeps such state."""
        return {} if isinstance(self.state, dist.ProcessGroup) else None

    def set_by_parameter(self, state: dict[str, Tensor]) -> None:
        """Replace :meth:`by_parameter`."""

    def __call__(self, bucket: Any) -> Future[Tensor]:
        return self.hook(self.state, bucket)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep; empty for a hook whose state offers no ``state_dict``."""
        return self.state.state_dict() if hasattr(self.state, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and hasattr(self.state, "load_state_dict"):
            self.state.load_state_dict(state)


def bind(hook: Hook, state: Any, group: dist.ProcessGroup, *, name: str = "") -> BoundHook:
    """Bind ``hook`` and ``state`` to the data-parallel ``group``.

    Args:
        state: ``None``, a process group (torch's simple hooks), or an object with ``process_group`` (PowerSGD).

    Raises:
        HookError: the state already holds another group.
    """
    name = name or getattr(hook, "__name__", type(hook).__name__)
    if state is None:
        return BoundHook(name, hook, group)
    if isinstance(state, dist.ProcessGroup):
        _same(state, group, name)
        return BoundHook(name, hook, state)
    if hasattr(state, "process_group"):
        if state.process_group is None:
            state.process_group = group
        _same(state.process_group, group, name)
    return BoundHook(name, hook, state)


def _same(given: dist.ProcessGroup, group: dist.ProcessGroup, name: str) -> None:
    have, want = dist.get_process_group_ranks(given), dist.get_process_group_ranks(group)
    if have != want:
        raise HookError(
            f"the state of hook {name!r} is bound to ranks {have}, but this engine averages gradients over ranks {want}; "
            "make the state with process_group=None and let recparallel bind it"
        )
