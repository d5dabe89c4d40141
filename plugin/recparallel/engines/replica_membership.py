"""Who is among replicas that come and go: a round of torch's dynamic rendezvous after the other.

Each replica is a launch of its own. Its first rank stands in the rendezvous (``torch.distributed.elastic``) for it: a store that
runs apart from all of them (``recparallel meeting-point``) has who takes part, and from when on somebody who has shown no sign of
life does not any more. A round ends when all who are left have come to the next one.
"""

import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousGracefulExitError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from recparallel.config import DataParallelConfig, ElasticConfig
from recparallel.engines.agreement import Ranks
from recparallel.engines.replica_world import ReplicaWorld
from recparallel.errors import ConfigError, ReplicaError
from recparallel.plan import Partition

T = TypeVar("T")

_SIGNS = 3
"""Of life that may be missing in a row."""

_LONG = timedelta(days=7)
_CUT, _NONE = "cut", "by DeepSpeed"


@dataclass(frozen=True)
class Elastic:
    """A launch that is one replica of several that come and go. It has a world already.

    Attributes:
        count: of replicas at most, among which a global batch is divided.
        config: where they meet.
        timeout: of whatever they do together.
        ranks: of this replica, who wait for their first as long as that waits for others.
    """

    count: int
    config: ElasticConfig
    timeout: timedelta
    ranks: Ranks

    @classmethod
    def of(cls, section: DataParallelConfig) -> "Elastic":
        """Collective over this replica's world."""
        assert section.elastic is not None
        assert section.replicas is not None
        group = dist.new_group(backend="gloo", timeout=_LONG)
        timeout = timedelta(seconds=section.timeout_s)
        return cls(section.replicas, section.elastic, timeout, Ranks(group, error=ReplicaError))

    def store(self) -> Store:
        """A connection of its own: threads wait for each other on one.

        Raises:
            ReplicaError: nobody answers.
        """
        config = self.config
        with self.named("cannot reach the meeting point"):
            store = dist.TCPStore(  # type: ignore[attr-defined]
                config.host, config.port, is_master=False, timeout=self.timeout, wait_for_workers=False
            )
        return PrefixStore(f"recparallel/{config.run}", store)

    def cut(self) -> Partition | None:
        """That all have; None where there is none yet. Collective over this replica's world."""

        def ask() -> str:
            with self.named("cannot ask for the cut"):
                store = self.store()
                return store.get(_CUT).decode() if store.check([_CUT]) else ""

        return _cut_from(self.ranks.first(ask))

    def agree_on(self, partition: Partition | None) -> Partition | None:
        """The cut of the first that is done with one, which all must have. Collective over this replica's world.

        Args:
            partition: this replica's; None for a method of DeepSpeed's own.
        """

        def tell() -> str:
            with self.named("cannot tell its cut"):
                own = _NONE if partition is None else partition.model_dump_json()
                return self.store().compare_set(_CUT, "", own).decode()

        return _cut_from(self.ranks.first(tell))

    @contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Raises:
        ReplicaError: instead of what torch raises where the meeting point does not answer.
        """
        try:
            yield
        except (RendezvousClosedError, RendezvousGracefulExitError) as error:
            raise ReplicaError(
                f"the training {self.config.run!r} at {self.config.endpoint} is over "
                "(recparallel.data_parallel.elastic: give another `run`, or start the meeting point anew)"
            ) from error
        except (RendezvousError, dist.DistError) as error:
            raise ReplicaError(
                f"a replica {what} in time (recparallel.data_parallel.timeout_s is {self.timeout.total_seconds():.0f} s; others "
                f"are waited for twice as long); the meeting point is {self.config.endpoint} "
                f"(recparallel.data_parallel.elastic.endpoint), at least {self.config.least} of {self.count} replicas are needed: "
                f"{error}"
            ) from error


class Membership:
    """This rank's place among the replicas, round after round. All ranks of a replica call alike.

    Args:
        elastic: where they meet.

    Attributes:
        round: name of the current round, the same for all its members and no other.
    """

    round: str

    def __init__(self, elastic: Elastic) -> None:
        self._elastic, self._ranks = elastic, elastic.ranks
        self.store = self._ranks.together(elastic.store)
        self._soon = timedelta(seconds=(_SIGNS - 1) * elastic.config.heartbeat_s)
        self._handler: Any = self._ranks.together(lambda: None if dist.get_rank() else _handler_of(elastic, self._soon))

    def next(self, tell: Callable[[], T]) -> tuple[ReplicaWorld, list[T]] | None:
        """Wait for all that are left, and for those that come; collective over this replica's world.

        Args:
            tell: gives what this replica tells the others; asked on its first rank.

        Returns:
            this rank's place, and what each replica has told; None where one has gone meanwhile.

        Raises:
            ReplicaError: on every rank: fewer than are needed come in time, or the training is over.
        """

        def meet() -> tuple[str, int, int, list[T]] | None:
            with self._elastic.named("finds too few others"):
                try:
                    found = self._handler.next_rendezvous()
                    if found.rank == 0:
                        found.store.set("round", uuid.uuid4().hex)
                    name = found.store.get("round").decode()
                    found.store.set(f"told/{found.rank}", pickle.dumps(tell()))
                    told = [pickle.loads(found.store.get(f"told/{number}")) for number in range(found.world_size)]
                except dist.DistStoreError:
                    return None
                return name, found.rank, found.world_size, told

        met = self._ranks.first(meet)
        if met is None:
            return None
        self.round, number, count, told = met
        return ReplicaWorld(number, count, dist.get_rank(), self.store, self._elastic.timeout), told

    def is_waited_for(self) -> bool:
        """Whether somebody wants to join; asked by the first rank alone."""
        with self._elastic.named("cannot tell who waits"):
            return bool(self._handler.num_nodes_waiting())

    def furthest(self, progress: int) -> int:
        """Steps of the training that a group has had when it formed, of all so far and this one; asked by the first rank alone."""
        with self._elastic.named("cannot tell how far the training is"):
            while True:
                found = self.store.compare_set("furthest", "", str(progress)).decode()
                if (
                    int(found) >= progress
                    or self.store.compare_set("furthest", found, str(progress)) == str(progress).encode()
                ):
                    return max(int(found), progress)

    def close(self) -> None:
        """The training is over: nobody joins any more."""
        if dist.get_rank() == 0:
            self._handler.shutdown()


def host_meeting_point(port: int) -> dist.TCPStore:  # type: ignore[name-defined]
    """The store where replicas meet, for as long as it is kept.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigError: the port is not free.
    """
    try:
        return dist.TCPStore("0.0.0.0", port, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    except dist.DistError as error:
        raise ConfigError(f"--port {port} is not free on this machine: {error}") from error


def _cut_from(told: str) -> Partition | None:
    return None if told in ("", _NONE) else Partition.model_validate_json(told)


def _handler_of(elastic: Elastic, soon: timedelta) -> DynamicRendezvousHandler:
    # Torch shares a store among the members of the first round alone: a later member would wait for its address.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config, store = elastic.config, elastic.store()
    store.set_timeout(soon)  # who stands in a round has just been there
    with elastic.named("cannot enter the rendezvous"):
        return DynamicRendezvousHandler.from_backend(
            config.run,
            store,
            C10dRendezvousBackend(store, config.run),
            config.least,
            elastic.count,
            timeout=RendezvousTimeout(join=2 * elastic.timeout, last_call=timedelta(seconds=config.last_call_s)),
            keep_alive_interval=config.heartbeat_s,
            keep_alive_max_attempt=_SIGNS,
        )
