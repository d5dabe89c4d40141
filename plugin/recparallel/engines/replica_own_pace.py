"""Replicas at their own pace: each exchanges at the end of its rounds, and trains on while the others come.

There is one exchange at a time, to which every replica comes once; it is over when the last has come. A replica that has handed
in its progress goes on, for as many rounds as the mode allows, and looks behind each step whether the mean has landed. Batches
are dealt out by a counter in the launch's store, so that a fast replica reads more of them. The training's clock is what all
replicas have trained on by the last landing: it moves alike on all of them, and by it they validate, save and end.
"""

from typing import Any

import torch
import torch.distributed as dist

from recparallel.config import DataParallelConfig
from recparallel.data_parallel.mode import OwnPace
from recparallel.engines.replica import Replicas
from recparallel.engines.replica_exchange import Header, Mean
from recparallel.engines.replica_world import ReplicaWorld


class OwnPaceReplicas(Replicas):
    """A replica of an :class:`OwnPace` mode."""

    def __init__(
        self, engine: Any, world: ReplicaWorld, section: DataParallelConfig, mode: OwnPace, *, clock: int
    ) -> None:
        super().__init__(engine, world, section, mode, clock=clock)
        self._pace = mode
        self._landed = 0  # steps of all replicas, as far as they have landed
        self._longest = clock  # of the replica that has made the most in each round
        self._speeds = [0.0] * world.count
        self._next_round()
        self._targets = self._steps = self._stale = 0  # since progress left
        self._seconds = 0.0

    @property
    def progress(self) -> int:
        return self._clock + self._landed // self.place[1]

    def after_step(self, targets: int, seconds: float) -> None:
        self._targets += targets
        self._seconds += seconds
        if self._flights:
            self._stale += 1 + self._steps // self._round
        self._steps += 1
        if self._flights and (self._steps >= self._pace.staleness * self._round or self._arrived()):
            self._land(0)
        if not self._flights and self._steps >= self._round:
            self._leave_now(meeting=False)
            if not self._pace.staleness:
                self._land(0)

    def meet(self) -> None:
        """Others may be amid their rounds, and come to further exchanges before they meet."""
        if self._flights:
            self._land(0)
        while True:
            self._leave_now(meeting=True)
            mean = self._land(0)
            if mean is not None and all(header.meeting for header in mean.headers):
                break

    def as_first(self, value: Any) -> Any:
        self.meet()  # some have handed in what others are still at
        return super().as_first(value)

    def at_rest(self) -> None:
        super().at_rest()
        self._landed, self._longest = 0, self._clock
        self._next_round()
        self._targets = self._steps = self._stale = 0
        self._seconds = 0.0

    def _arrived(self) -> bool:
        """Whether all ranks of this replica have the mean."""
        arrived = torch.tensor([int(self._flights[0].mean.done())], device=self.engine.device)
        dist.all_reduce(arrived, dist.ReduceOp.MIN)
        return bool(arrived)

    def _next_round(self) -> None:
        self._round = self._pace.round_of(self._speeds, self.world.number, self._longest)

    def _leave_now(self, *, meeting: bool, waiting: bool = False) -> None:
        steps = self._steps
        own = Header(
            self._targets,
            steps,
            self._seconds / steps if steps else 0.0,
            self._stale / steps if steps else 0.0,
            meeting,
            waiting,
        )
        self._targets = self._steps = self._stale = 0
        self._seconds = 0.0
        self._leave(0, own)

    def _land(self, part: int) -> Mean | None:
        mean = super()._land(part)
        assert mean is not None
        steps = [header.steps for header in mean.headers]
        self._landed += sum(steps)
        self._longest += max(steps)
        seconds = [header.seconds for header in mean.headers]
        if min(seconds) > 0:  # one that has made no step tells no speed
            self._speeds = seconds
        self._next_round()
        self._follow_schedule()
        return mean

    def _follow_schedule(self) -> None:
        """DeepSpeed's schedules go by the training's clock; others count this replica's steps."""
        scheduler = self.engine.lr_scheduler
        if hasattr(scheduler, "last_batch_iteration"):
            scheduler.last_batch_iteration = self.progress + self._steps - 1
