"""Who is among replicas that come and go: a round of torch's dynamic rendezvous after the other.

Each replica is a launch of its own. Its first rank stands in the rendezvous (``torch.distributed.elastic``) for it: a store that
runs apart from all of them (``recparallel meeting-point``) has who takes part, and from when on somebody who has shown no sign of
life does not any more. A round ends when all who are left have come to the next one.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from recparallel.config import DataParallelConfig, ElasticConfig
from recparallel.engines.agreement import Ranks
from recparallel.engines.replica_world import ReplicaWorld
from recparallel.errors import ConfigError, ReplicaError
from recparallel.plan import Partition

_SIGNS = 3
"""Of life that may be missing in a row."""


@dataclass(frozen=True)
class Elastic:
    """A launch that is one replica of several that come and go. It has a world already.

    Attributes:
        count: of replicas at most, among which a global batch is divided.
        config: where they meet.
        timeout: of whatever they do together.
        cuts: whether this one cuts the model for all; known behind :meth:`cut`.
    """

    count: int
    config: ElasticConfig
    timeout: timedelta
    _told: list[bool]

    @classmethod
    def of(cls, section: DataParallelConfig) -> "Elastic":
        assert section.elastic is not None
        assert section.replicas is not None
        return cls(section.replicas, section.elastic, timedelta(seconds=section.timeout_s), [])

    @property
    def tells(self) -> bool:
        """Whether this replica has cut the model."""
        return self._told == [True]

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
        """Of the first replica that came; None for that one, which measures and cuts. Collective over this replica's world."""

        def ask() -> str | None:
            with self.named("has no cut from the replica that came first, which measures and cuts the model"):
                store = self.store()
                return None if store.add("came", 1) == 1 else store.get("cut").decode()

        told = Ranks(error=ReplicaError).first(ask)
        self._told.append(told is None)
        return Partition.model_validate_json(told) if told else None

    def tell_cut(self, partition: Partition | None) -> None:
        """For those that come later."""
        if self.tells and dist.get_rank() == 0:
            self.store().set("cut", "" if partition is None else partition.model_dump_json())

    @contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Raises:
        ReplicaError: instead of what torch raises where the meeting point does not answer.
        """
        try:
            yield
        except RendezvousClosedError as error:
            raise ReplicaError(
                f"the training {self.config.run!r} at {self.config.endpoint} is over "
                "(recparallel.data_parallel.elastic: give another `run`, or start the meeting point anew)"
            ) from error
        except (RendezvousError, dist.DistError) as error:
            raise ReplicaError(
                f"a replica {what} within {self.timeout.total_seconds():.0f} s (recparallel.data_parallel.timeout_s); the "
                f"meeting point is {self.config.endpoint} (recparallel.data_parallel.elastic.endpoint), at least "
                f"{self.config.least} of {self.count} replicas are needed: {error}"
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
        self._elastic, self._ranks = elastic, Ranks(error=ReplicaError)
        self.store = self._ranks.together(elastic.store)
        self._handler: Any = self._ranks.together(lambda: None if dist.get_rank() else _handler_of(elastic))

    def next(self) -> ReplicaWorld:
        """Wait for all that are left, and for those that come; collective over this replica's world.

        Raises:
            ReplicaError: on every rank: fewer than are needed come in time, or the training is over.
        """

        def meet() -> tuple[str, int, int]:
            with self._elastic.named("finds too few others"):
                found = self._handler.next_rendezvous()
                if found.rank == 0:
                    found.store.set("round", uuid.uuid4().hex)
                return found.store.get("round").decode(), found.rank, found.world_size

        self.round, number, count = self._ranks.first(meet)
        return ReplicaWorld(number, count, dist.get_rank(), self.store, self._elastic.timeout)

    def is_waited_for(self) -> bool:
        """Whether somebody wants to join; asked by the first rank alone."""
        with self._elastic.named("cannot tell who waits"):
            return bool(self._handler.num_nodes_waiting())

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


def _handler_of(elastic: Elastic) -> DynamicRendezvousHandler:
    # Torch shares a store among the members of the first round alone: a later member would wait for its address.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config, store = elastic.config, elastic.store()
    with elastic.named("cannot enter the rendezvous"):
        return DynamicRendezvousHandler.from_backend(
            config.run,
            store,
            C10dRendezvousBackend(store, config.run),
            config.least,
            elastic.count,
            timeout=RendezvousTimeout(join=elastic.timeout, last_call=timedelta(seconds=config.last_call_s)),
            keep_alive_interval=config.heartbeat_s,
            keep_alive_max_attempt=_SIGNS,
        )
