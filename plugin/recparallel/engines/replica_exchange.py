"""What one rank of a replica exchanges with its like in the others: progress, by a codec, and a header that says what it is of."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.collectives.bucket import Bucket
from recparallel.config import CompressionConfig
from recparallel.data_parallel.configured import configured_hook
from recparallel.data_parallel.mode import Mode
from recparallel.data_parallel.synchronous import dense_hook
from recparallel.engines.replica_world import ReplicaWorld, outer_group
from recparallel.errors import ReplicaError


@dataclass(frozen=True)
class Header:
    """Of one replica's progress.

    Attributes:
        targets: that it was trained on.
        steps: of the replica, in which.
        seconds: that one of them took.
        staleness: rounds that its weights were behind, in the mean over the steps.
        meeting: the replica will not train on before all have met.
        waiting: another one wants to join.
    """

    targets: int
    steps: int
    seconds: float = 0.0
    staleness: float = 0.0
    meeting: bool = False
    waiting: bool = False


@dataclass(frozen=True)
class Part:
    """Progress of one layer's weights: a flat tensor on the CPU, over these weights, and their place among all that is
    exchanged."""

    flat: Tensor
    weights: tuple[torch.nn.Parameter, ...]
    names: tuple[str, ...]
    index: int


@dataclass(frozen=True)
class Mean:
    """What an exchange gives: mean progress by part, the headers of all replicas, bytes that this rank sent, and seconds."""

    parts: list[Tensor]
    headers: tuple[Header, ...]
    wire_bytes: int
    seconds: float


class OuterExchange:
    """The outer group, and a thread in which everything that goes over it runs, in order.

    Args:
        world: this rank's place.
        compression: the codec.
        mode: weighs the replicas.
        name: of the group.

    Attributes:
        hook: averages.
    """

    def __init__(self, world: ReplicaWorld, compression: CompressionConfig | None, mode: Mode, *, name: str) -> None:
        self._world, self._mode = world, mode
        self._thread = ThreadPoolExecutor(1, "replicas")
        with self.named("before the first step"):
            self._group = outer_group(world, name)
        hook = configured_hook(compression, self._group)
        self.hook = dense_hook(self._group) if hook is None else hook

    def begin(self, parts: Sequence[Part], header: Header) -> Future[Mean]:
        """Send progress on its way."""
        return self._thread.submit(self._average, parts, header)

    def gather(self, own: Any) -> list[Any]:
        """What every replica gives; collective, behind what is on its way."""

        def gather() -> list[Any]:
            everyone: list[Any] = [None] * self._world.count
            dist.all_gather_object(everyone, own, group=self._group)
            return everyone

        return self.together(gather)

    def as_first(self, value: Any, *, first: int = 0) -> Any:
        """What replica ``first`` gives; collective, behind what is on its way."""
        told = [value]
        self.together(lambda: dist.broadcast_object_list(told, group=self._group, group_src=first))
        return told[0]

    def hand_on(self, tensors: dict[str, Tensor], *, first: int) -> dict[str, Tensor]:
        """Tensors in the host's memory that replica ``first`` has, on every replica; collective, behind what is on its way."""
        named = self.as_first([(name, own.shape, own.dtype) for name, own in tensors.items()], first=first)
        found = {name: tensors.get(name, torch.empty(shape, dtype=dtype)) for name, shape, dtype in named}

        def hand_on() -> None:
            for own in found.values():
                dist.broadcast(own, group=self._group, group_src=first)

        self.together(hand_on)
        return found

    def together(self, act: Callable[[], Any]) -> Any:
        """In the thread: two would mix their messages up."""
        with self.named("of a decision"):
            return self._thread.submit(act).result()

    def close(self) -> None:
        """Nothing is exchanged any more."""
        self._thread.shutdown()

    def give_up(self) -> None:
        """A replica has gone. Connections close, by which others find out that wait for this one: gloo closes them when nothing
        refers to the group any more."""
        self.close()
        dist.destroy_process_group(self._group)
        del self._group, self.hook
        gc.collect()

    @contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Raises:
        ReplicaError: instead of what torch raises where a replica is not there.
        """
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if isinstance(error, ReplicaError):
                raise
            raise ReplicaError(
                f"replica {self._world.number} of {self._world.count}: the exchange {what} failed: another replica has gone, or "
                f"has not come within {self._world.timeout.total_seconds():.0f} s (recparallel.data_parallel.timeout_s): {error}"
            ) from error

    def _average(self, parts: Sequence[Part], header: Header) -> Mean:
        start = time.perf_counter()
        everyone = [torch.zeros(6, dtype=torch.float64) for _ in range(self._world.count)]
        dist.all_gather(everyone, torch.tensor(astuple(header), dtype=torch.float64), group=self._group)
        headers = tuple(_header_of(told.tolist()) for told in everyone)
        if not any(told.targets for told in headers):  # nobody has learned anything, and nothing is sent
            return Mean([torch.zeros_like(part.flat) for part in parts], headers, 0, time.perf_counter() - start)
        shares = self._mode.shares([told.targets for told in headers], [told.staleness for told in headers])
        weight = shares[self._world.number] * self._world.count  # the hook gives the mean
        means, sent = [], 0
        for part in parts:
            bucket = Bucket(part.flat.mul_(weight), part.weights, part.names, part.index, part is parts[-1])
            mean: Any = self.hook(bucket).wait()
            means.append(mean[0] if isinstance(mean, (list, tuple)) else mean)
            sent += self.hook.wire_bytes(bucket)
        self.hook.step_done(made=True)
        return Mean(means, headers, sent, time.perf_counter() - start)


def _header_of(told: list[float]) -> Header:
    targets, steps, seconds, staleness, meeting, waiting = told
    return Header(int(targets), int(steps), seconds, staleness, bool(meeting), bool(waiting))
