"""Replicas that come and go, each a launch of its own.

Where an exchange fails, somebody has gone; where one tells that somebody waits, he is let in. Then all form the outer group anew,
and tell how far they are. The one that is furthest hands on to those behind it: the common weights, the outer optimizer's state,
the clock, and, to who is new, what optimizers inside keep. Who is behind and was there before may have handed in progress that the
others have followed: he keeps what he has learned since. Where nobody has followed it, it is handed in again. So what a replica
has learned is lost with this replica alone.
"""

import logging
import time
import traceback
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor

from recparallel import events
from recparallel.checkpointing.names import STATE, WEIGHT
from recparallel.config import DataParallelConfig
from recparallel.data_parallel.mode import OwnPace
from recparallel.engines.engine_state import collect_parts, read_weights, restore, write_weights
from recparallel.engines.replica_exchange import Mean, OuterExchange
from recparallel.engines.replica_membership import Elastic, Membership
from recparallel.engines.replica_own_pace import OwnPaceReplicas
from recparallel.engines.replica_standing import Standing, is_behind
from recparallel.engines.replica_world import ReplicaWorld
from recparallel.errors import ReplicaError

logger = logging.getLogger(__name__)

_OUTER = "outer"
_ATTEMPTS = 5
"""That fail in a row, until it is not the others who fail."""


class ElasticReplicas(OwnPaceReplicas):
    """A replica that may be left alone, and to which others may come.

    Args:
        engine, section, clock: of :class:`Replicas`.
        elastic: where they meet.
        mode: as :func:`of_those_that_come_and_go` gives it.

    Raises:
        ReplicaError: the meeting point does not answer.
    """

    def __init__(
        self, engine: Any, elastic: Elastic, section: DataParallelConfig, mode: OwnPace, *, clock: int
    ) -> None:
        self._elastic, self._of = elastic, elastic.count
        self._members, self._ranks = Membership(elastic), elastic.ranks
        alone = ReplicaWorld(0, elastic.count, dist.get_rank(), self._members.store, elastic.timeout)
        super().__init__(engine, alone, section, mode, clock=clock)
        self._exchanges = self._failed = 0
        self._seen = clock
        self._is_new, self._is_joined = True, False
        self._waits = 0
        self._identities: tuple[Any, ...] = ()
        self._digests: tuple[str, ...] = ()
        self._dealing: tuple[str, int] | None = None
        self._met: tuple[int, int] | None = None
        self._handed_in = (0, 0, 0, 0.0)
        self._followed: dict[str, int] = {}

    @property
    def place(self) -> tuple[int, int]:
        return self.world.number, self._of

    def begin(self) -> int:
        if self._is_new:
            launch = f"{dist.get_world_size()} ranks, {self.engine.grid.data_parallel_size} pipelines"
            everyone = self._ranks.gather(lambda: (*self._identity(), self.dealt_from))
            self._identities = (launch, *(word for own in everyone for word in own))
            self._digests = tuple(self._ranks.gather(self._digest))
            self._form()
        return self._seen

    def end(self) -> None:
        self._members.close()

    def after_step(self, targets: int, seconds: float) -> None:
        self._seen = self.progress
        super().after_step(targets, seconds)

    def meet(self) -> None:
        """Once, until somebody has learned anything: who joins during a meeting meets once too."""
        self.begin()
        while self._met != (self._exchanges, self.engine.global_steps):
            super().meet()
            if self._have_all_met():
                self._met = self._exchanges, self.engine.global_steps

    def last_seen(self, step: int) -> int:
        return max(step, self._seen)

    def as_first(self, value: Any) -> Any:
        """The value itself: nothing that all must do alike is decided by it."""
        return value

    def deal(self, start: int, restarts: int) -> int:
        self.begin()
        assert self._dealing is not None
        with self._elastic.named("is not told which batch is the next"):
            return self._next_of(*self._dealing)

    def at_rest(self) -> None:
        super().at_rest()
        self._seen = self.progress

    def close(self) -> None:
        if self._is_joined:
            super().close()

    def _load_left_out(self, state: dict[str, Any]) -> None:
        """Not kept: it belongs to a group that has ended."""

    def _leave_now(self, *, meeting: bool, waiting: bool = False) -> None:
        self._handed_in = self._targets, self._steps, self._stale, self._seconds
        waiting = dist.get_rank() == 0 and self.world.count < self._of and self._members.is_waited_for()
        super()._leave_now(meeting=meeting, waiting=waiting)

    def _land(self, part: int) -> Mean | None:
        failure = _failure_of(self._flights[part].mean)
        if any(self._ranks.gather(lambda: failure is not None)):
            self._failed += 1
            if self._failed > _ATTEMPTS:
                raise ReplicaError(f"{self._failed} exchanges in a row have failed: {failure}")
            logger.warning("an exchange has failed (%s); replicas form anew", failure or "on another rank")
            self._form()
            return None
        mean = super()._land(part)
        assert mean is not None
        self._exchanges, self._failed = self._exchanges + 1, 0
        self._followed[self._members.round] = self._exchanges
        if any(told.waiting for told in mean.headers) and not any(told.meeting for told in mean.headers):
            self._form()
        return mean

    def _form(self) -> None:
        """With all that are there; collective over them.

        Raises:
            ReplicaError: too few come, or this one is not like the others.
        """
        before = 0 if self._is_new else self.world.count
        left, group = self._take_back(), "" if self._is_new else self._members.round
        for _ in range(_ATTEMPTS):
            self._leave_group()
            found = self._members.next(self._standing)
            if found is None:
                logger.warning("a replica has gone while replicas formed; they form once more")
                continue
            self.world, standings = found
            number = max(range(len(standings)), key=lambda one: standings[one].how_far)
            first = standings[number]
            self._refuse_unlike(first)
            if any(one.identity != first.identity for one in standings) or self._is_without_who_knows(first):
                continue  # somebody who is not like the others leaves, or makes room
            behind = [one is not first and is_behind(one, first) for one in standings]
            try:
                self._ranks.together(self._enter)
                tensors, numbers = self._ranks.together(partial(self._hand_on, number, any_behind=any(behind)))
            except ReplicaError as error:
                logger.warning("replicas could not form (%s); once more", error)
                continue
            break
        else:
            raise ReplicaError(f"replicas could not form in {_ATTEMPTS} attempts; what each has met is in its log")
        is_followed = first.followed.get(group, 0) > self._exchanges
        if behind[self.world.number]:
            self._catch_up(first, tensors, numbers, left if is_followed else None)
        if left is not None and not is_followed:
            targets, steps, stale, seconds = self._handed_in
            self._targets, self._steps = self._targets + targets, self._steps + steps
            self._stale, self._seconds = self._stale + stale, self._seconds + seconds
        self._dealing, self._is_new = first.dealing, False
        self._speeds = [0.0] * self.world.count
        self._next_round()
        events.emit(events.ReplicasFormed(self.progress, self.world.count, before))

    def _take_back(self) -> dict[str, Tensor] | None:
        """Progress that was on its way: what weights were when it left. Nothing refers to its exchange any more."""
        flight = self._flights.pop(0, None)
        return None if flight is None else flight.left

    def _have_all_met(self) -> bool:
        """Whether all are through the exchange by which they met; else they form anew."""
        failure: str | None = None
        try:
            self._exchange.gather(None)
        except ReplicaError as error:
            failure = str(error)
        if any(self._ranks.gather(lambda: failure is not None)):
            logger.warning("a meeting has failed (%s); replicas form anew", failure or "on another rank")
            self._form()
            return False
        return True

    def _is_without_who_knows(self, first: Standing) -> bool:
        """Whether the training is further than all that are here, who have just come and took the places of who knows.

        Raises:
            ReplicaError: who knows does not come.
        """
        furthest = self._ranks.first(lambda: self._members.furthest(first.progress))
        if not first.is_new or furthest <= first.progress:
            return False
        self._waits += 1
        if self._waits >= _ATTEMPTS:
            raise ReplicaError(
                f"the training {self._elastic.config.run!r} at {self._elastic.config.endpoint} was {furthest} steps far, and of "
                f"the {self.world.count} replicas that are there none was in it: resume it, or give another `run` "
                "(recparallel.data_parallel.elastic)"
            )
        self._leave_group()
        time.sleep(self._elastic.config.last_call_s)
        return True

    def _leave_group(self) -> None:
        if self._is_joined:
            self._exchange.give_up()
            self._is_joined = False

    def _enter(self) -> None:
        self._exchange = OuterExchange(self.world, self.section.compression, self.mode, name=self._members.round)
        self._is_joined = True

    def _standing(self) -> Standing:
        return Standing(
            self.progress,
            self._exchanges,
            self._is_new,
            self._identities,
            self._digests,
            (self._clock, self._landed, self._longest),
            self._seen,
            self._dealing or (f"dealt/{uuid.uuid4().hex}", self.progress * self._of),
            self._followed,
        )

    def _refuse_unlike(self, first: Standing) -> None:
        for mine, theirs in zip(self._identities, first.identity):
            if mine != theirs:
                raise ReplicaError(f"this replica is not like the others: it has {mine}, they have {theirs}")

    def _hand_on(self, first: int, *, any_behind: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What those behind need."""
        if not any_behind:
            return {}, {}
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        if self.world.number == first:
            own = collect_parts(self.engine, device="cpu")
            tensors = {key: value for key, value in own.items() if key.startswith(f"{STATE}/")}
            for name, weight in self.common.items():
                tensors[f"{WEIGHT}/{name}"] = weight.detach()
                for key, value in self._outer.state.get(weight, {}).items():
                    place = tensors if isinstance(value, Tensor) else numbers
                    place[f"{_OUTER}/{name}/{key}"] = value
            tensors = {key: value.cpu().contiguous() for key, value in tensors.items()}
        return self._exchange.hand_on(tensors, first=first), self._exchange.as_first(numbers, first=first)

    def _catch_up(
        self, first: Standing, tensors: dict[str, Tensor], numbers: dict[str, Any], left: Mapping[str, Tensor] | None
    ) -> None:
        """Take over what ``first`` has handed on, and keep what was learned since the weights were ``left``; if that is not given,
        since they were those in common."""
        common = {name: tensors[f"{WEIGHT}/{name}"].to(weight.device) for name, weight in self.common.items()}
        if self._is_new:
            restore(self.engine, {key: own for key, own in tensors.items() if not key.startswith(_OUTER)}, parts=True)
        else:
            now = read_weights(self.engine)
            since = self.common if left is None else left
            write_weights(self.engine, {name: common[name] + (now[name] - since[name].detach()) for name in common})
        outer: dict[str, dict[str, Any]] = {}
        for key, value in {**tensors, **numbers}.items():
            kind, _, rest = key.partition("/")
            if kind == _OUTER:
                name, _, inner = rest.rpartition("/")
                outer.setdefault(name, {})[inner] = value
        for name, weight in self.common.items():
            weight.data.copy_(common[name])
        self._load_outer(outer)
        self._clock, self._landed, self._longest = first.counters
        self._exchanges, self._followed = first.exchanges, dict(first.followed)
        self._seen = first.seen
        if self._is_new and self.progress and hasattr(self.engine.lr_scheduler, "last_batch_iteration"):
            self.engine.lr_scheduler.step(self.progress - 1)


def _failure_of(landing: Future[Mean]) -> str | None:
    """What the exchange has failed by, if others may be the cause. What it refers to is let go: the group closes with the last
    reference to it."""
    wait([landing])
    error = landing.exception()
    if not isinstance(error, (RuntimeError, dist.DistError)):
        return None
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    return str(error)
