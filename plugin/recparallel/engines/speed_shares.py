"""Replicas of one world with different speeds: each gets rows of the global batch by what a row takes it.

All do the same number of micro-batches a step, of different sizes; the loss is the mean over the targets of all, whoever has them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from recparallel import events
from recparallel.data_parallel.shares import rows_by_speed
from recparallel.engines.bindings import Bindings
from recparallel.engines.stage_clock import StageClock

_FIRST, _EVERY = 3, 20
"""Steps behind which speeds are compared for the first time, and from one time to the next."""

_WORTH = 0.03
"""Of a step: less is not worth other shapes."""


class Shares:
    """Rows of a micro-batch, by replica.

    Args:
        engine: a pipeline engine of one stage.
        given: rows of each; None measures what a row takes, again and again, beginning with equal shares.

    Attributes:
        rows: of each, in all steps to come, the same on every replica.
    """

    def __init__(self, engine: Any, given: list[int] | None) -> None:
        self._engine = engine
        self._group = engine.mpu.get_data_parallel_group()
        replicas = engine.grid.data_parallel_size
        self.rows = given or [int(engine.micro_batch_size)] * replicas
        self._is_measured = given is None and replicas > 1
        self._clock = StageClock(engine)
        self._steps = 0

    @property
    def own_in_all(self) -> float:
        """How many times this replica's share all shares are."""
        return sum(self.rows) / self.rows[self._engine.grid.data_parallel_id]

    def bind(self, bindings: Bindings) -> None:
        """Measure in every step, and share anew behind some."""
        if not self._is_measured:
            return
        self._clock.bind(bindings)
        original: Callable[..., Any] = self._engine.train_batch

        def train_batch(*args: Any, **kwargs: Any) -> Any:
            self._clock.begin_step()
            loss = original(*args, **kwargs)
            self._clock.end_step()
            self._steps += 1
            if self._steps == _FIRST or self._steps % _EVERY == 0:
                self._look()
            return loss

        bindings.bind(self._engine, "train_batch", train_batch)

    def _look(self) -> None:
        """Collective over the replicas."""
        taken = self._clock.take()
        own = 0.0 if taken is None else taken / self.rows[self._engine.grid.data_parallel_id]
        told = torch.zeros(len(self.rows), dtype=torch.float64, device=self._engine.device)
        told[self._engine.grid.data_parallel_id] = own
        dist.all_reduce(told, group=self._group)
        seconds = told.tolist()
        if min(seconds) <= 0:  # a clock has failed
            return
        rows = rows_by_speed(seconds, sum(self.rows))
        before, after = (max(n * s for n, s in zip(shares, seconds)) for shares in (self.rows, rows))
        if after < before * (1 - _WORTH):
            self.rows = rows
            events.emit(
                events.SharesChanged(self._engine.global_steps, tuple(rows), tuple(seconds), 1 - after / before)
            )
