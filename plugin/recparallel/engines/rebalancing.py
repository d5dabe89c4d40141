"""Live rebalancing: look at what stages take every few steps, decide on rank 0, and move layers on all ranks.

The decision is :mod:`recparallel.partitioning.adaptive`'s, the move :mod:`recparallel.engines.moving`'s.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch.distributed as dist

from recparallel import events
from recparallel.config import RebalanceConfig
from recparallel.engines.agreement import Ranks
from recparallel.engines.bindings import Bindings
from recparallel.engines.moving import move_layers
from recparallel.engines.stage_clock import StageClock
from recparallel.errors import MoveError
from recparallel.partitioning.adaptive import Decision, Look, RebalancePolicy, Rules

logger = logging.getLogger(__name__)


def bind_rebalancing(engine: Any, config: RebalanceConfig, bindings: Bindings) -> None:
    """Rebalance a pipeline behind its training steps. Collective: it makes a group, as messages of a training must not mix with
    these."""
    group = dist.new_group(backend="gloo")
    bindings.on_remove(lambda: dist.destroy_process_group(group) if dist.is_initialized() else None)
    rebalancer = _Rebalancer(engine, config, group)
    rebalancer.clock.bind(bindings)
    original: Callable[..., Any] = engine.train_batch

    def train_batch(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        rebalancer.clock.begin_step()
        loss = original(*args, **kwargs)
        rebalancer.clock.end_step()
        rebalancer.step_done(time.perf_counter() - start)
        return loss

    bindings.bind(engine, "train_batch", train_batch)


@dataclass(frozen=True)
class _Measured:
    """What a rank tells of the steps since the last look."""

    pass_seconds: float | None
    step_seconds: float
    writing: bool


class _Rebalancer:
    """One rank's part.

    Args:
        engine: of the pipeline.
        config: how often, and how eager.
        group: of all ranks.
    """

    def __init__(self, engine: Any, config: RebalanceConfig, group: dist.ProcessGroup) -> None:
        self._engine, self._every, self._group = engine, config.every, group
        self._ranks = Ranks(group, error=MoveError)
        rules = Rules(config.horizon, config.min_gain, config.tolerance)
        module = engine.module
        self._policy = RebalancePolicy(
            module.profile,
            module.partition,
            rules,
            num_ranks=dist.get_world_size(),
            cut_by_profile=module.cut_by_profile,
        )
        self.clock = StageClock(engine)
        self._step_seconds: list[float] = []
        self._is_warm = False
        self._said: set[str] = set()

    def step_done(self, seconds: float) -> None:
        """Count a step; look, where it is time to."""
        if not self._is_warm:  # the first step at the start, and behind a move, is slower than the others
            self._begin_anew()
            self._is_warm = True
            return
        self._step_seconds.append(seconds)
        if len(self._step_seconds) == self._every:
            self._look()

    def _begin_anew(self) -> None:
        self.clock.take()
        self._step_seconds.clear()

    def _look(self) -> None:
        own = _Measured(self.clock.take(), median(self._step_seconds), self._engine.recparallel.writing())
        self._step_seconds.clear()
        everyone: list[Any] = self._ranks.gather(lambda: own)
        if any(rank.writing for rank in everyone):
            return
        look = Look(tuple(rank.pass_seconds for rank in everyone), max(rank.step_seconds for rank in everyone))
        try:
            decision: Decision = self._ranks.first(lambda: self._policy.look(look))
        except MoveError as error:  # a mistake in a decision must not stop the training
            self._warn_once(f"layers are not rebalanced: {error}")
            return
        self._tell(decision)
        if decision.target is not None:
            self._move(decision)

    def _move(self, decision: Decision) -> None:
        engine, target = self._engine, decision.target
        assert target is not None
        before = engine.module.partition.bounds
        start, sent, error = time.perf_counter(), 0, ""
        try:
            sent = move_layers(engine, target, group=self._group)
        except MoveError as failure:
            error = str(failure)
            self._warn_once(f"layers stay where they are: {error}")
        seconds = time.perf_counter() - start
        if dist.get_rank() == 0 and error:
            self._policy.failed(decision)
        elif dist.get_rank() == 0:
            self._policy.moved(decision, seconds=seconds)
        self._is_warm = False
        self._emit(
            events.Move(
                step=engine.global_steps,
                reason=decision.reason,
                before=before,
                after=target.bounds,
                gain=decision.gain,
                predicted_seconds=decision.cost_seconds,
                seconds=seconds,
                num_bytes=sent,
                takes_back=decision.takes_back,
                error=error,
            )
        )

    def _tell(self, decision: Decision) -> None:
        if decision.paid is not None:
            self._emit(events.MoveOutcome(self._engine.global_steps, decision.paid, decision.share_saved or 0.0))
        if decision.failed:
            self._warn_once(f"layers are not rebalanced: {decision.reason}")
        logger.debug("step %d: %s", self._engine.global_steps, decision.reason)

    def _emit(self, event: events.Event) -> None:
        if events.observed():
            events.emit(event)

    def _warn_once(self, sentence: str) -> None:
        if dist.get_rank() == 0 and sentence not in self._said:
            self._said.add(sentence)
            logger.warning("%s", sentence)
