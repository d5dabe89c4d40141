"""Replicas that exchange behind the same steps: when, is the mode's."""

from typing import Any

from recparallel.config import DataParallelConfig
from recparallel.data_parallel.mode import Lockstep
from recparallel.engines.replica import Replicas
from recparallel.engines.replica_exchange import Header
from recparallel.engines.replica_world import ReplicaWorld


class LockstepReplicas(Replicas):
    """A replica of a :class:`Lockstep` mode."""

    def __init__(
        self, engine: Any, world: ReplicaWorld, section: DataParallelConfig, mode: Lockstep, *, clock: int
    ) -> None:
        super().__init__(engine, world, section, mode, clock=clock, fragments=mode.fragments)
        self._when = mode
        self._targets = 0
        self._left_with: dict[int, int] = {}
        self._left_at = dict.fromkeys(range(mode.fragments), clock)

    def after_step(self, targets: int, seconds: float) -> None:
        own = self.engine.global_steps
        self._targets += targets
        for part in [part for part, flight in self._flights.items() if own - flight.step >= self._when.delay]:
            self._land(part)
        for part in self._when.leaving(self.progress):
            self._leave_now(part)
        if not self._when.delay:
            self._land_all()

    def meet(self) -> None:
        self._land_all()
        for part in range(len(self._fragments)):
            if self._left_at[part] != self.progress:
                self._leave_now(part)
        self._land_all()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        super().load_state_dict(state)
        self._left_with.clear()
        self._targets = 0

    def at_rest(self) -> None:
        super().at_rest()
        self._left_at = dict.fromkeys(range(len(self._fragments)), self.progress)

    def _land_all(self) -> None:
        for part in list(self._flights):
            self._land(part)

    def _leave_now(self, part: int) -> None:
        step = self.progress
        own = Header(self._targets - self._left_with.get(part, 0), step - self._left_at[part])
        self._left_with[part], self._left_at[part] = self._targets, step
        self._leave(part, own)
