"""Bounded staleness: replicas run at their own speed, and one waits only where it is too many rounds ahead.

Every replica makes as many steps a round as its speed allows, so that rounds take all of them about as long (dynamic local
updates: Liu et al., 2024). What it has learned leaves, and it trains on until the mean of all replicas has arrived; what it
does meanwhile is *stale*: made from weights that lack what the others had learned by then. The more of its progress is stale,
the less it weighs (polynomial discount: Xie et al., "Asynchronous federated optimization", 2019). Common weights follow by
(delayed) Nesterov.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from recparallel.data_parallel.delayed_nesterov import DelayedNesterov
from recparallel.data_parallel.mode import OwnPace, check_number
from recparallel.errors import ConfigError


class BoundedStaleness(OwnPace):
    """Rounds by speed, and a bound.

    Args:
        staleness: rounds of its own that a replica may train while an exchange is on its way; 0 waits for each.
        local_steps: of the fastest replica's round; or, as a list, of each replica's, by its number, whatever its speed.
        match_speed: a slower replica's round has fewer steps; False gives all the same.
        discount: exponent of the weight ``(1 + staleness) ** -discount`` of progress; 0 weighs by targets alone.
        outer_learning_rate: of the outer optimizer.
        outer_momentum: of the outer optimizer; in [0, 1). More than this cost recommendations (docs/data_parallel.md).
        momentum_every: exchanges to one move of the momentum. In the paper, where every replica's progress is an update of its own,
            more than 1 is needed; here an update has that of all, and 1 learned more.

    Raises:
        ConfigError: a number is out of range.
    """

    name = "bounded_staleness"

    def __init__(
        self,
        *,
        staleness: int = 1,
        local_steps: int | list[int] = 10,
        match_speed: bool = True,
        discount: float = 0.5,
        outer_learning_rate: float = 0.7,
        outer_momentum: float = 0.3,
        momentum_every: int = 1,
    ) -> None:
        check_number(staleness, "bounded_staleness: staleness", least=0, whole=True)
        for steps in local_steps if isinstance(local_steps, list) and local_steps else [local_steps]:
            check_number(steps, "bounded_staleness: local_steps", least=1, whole=True)
        check_number(discount, "bounded_staleness: discount", least=0)
        check_number(outer_learning_rate, "bounded_staleness: outer_learning_rate", least=0)
        check_number(outer_momentum, "bounded_staleness: outer_momentum", least=0, below=1)
        check_number(momentum_every, "bounded_staleness: momentum_every", least=1, whole=True)
        if not isinstance(match_speed, bool):
            raise ConfigError(f"bounded_staleness: match_speed is true or false, got {match_speed!r}")
        self.staleness, self._local_steps = staleness, local_steps
        self._match, self._discount = match_speed, discount
        self._rate, self._momentum, self._period = outer_learning_rate, outer_momentum, momentum_every

    def check_replicas(self, count: int, *, come_and_go: bool) -> None:
        if not isinstance(self._local_steps, list):
            return
        if come_and_go:
            raise ConfigError(
                f"bounded_staleness: local_steps {self._local_steps} is by number, and the numbers of replicas that come and go "
                "change; give one for all"
            )
        if len(self._local_steps) != count:
            raise ConfigError(
                f"bounded_staleness: local_steps {self._local_steps} has {len(self._local_steps)} numbers for {count} replicas"
            )

    def round_of(self, seconds: Sequence[float], number: int, step: int) -> int:
        if isinstance(self._local_steps, list):
            return self._local_steps[number]
        if not self._match or min(seconds) <= 0:  # one that has made no step tells no speed
            return self._local_steps
        return max(1, round(self._local_steps * min(seconds) / seconds[number]))

    def shares(self, targets: Sequence[float], staleness: Sequence[float]) -> list[float]:
        return super().shares(
            [count * (1 + late) ** -self._discount for count, late in zip(targets, staleness)], staleness
        )

    def outer_optimizer(self, common: Iterable[Tensor]) -> torch.optim.Optimizer:
        return DelayedNesterov(common, lr=self._rate, momentum=self._momentum, period=self._period)
