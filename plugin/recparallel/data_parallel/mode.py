"""What an asynchronous mode of data parallelism is: when replicas exchange, and what they make of it.

A replica trains by itself. Now and then it hands in what its weights have moved by since it last did (its *progress*); the mean
of all replicas' progress, weighted by the targets that they trained on, moves weights that all replicas have in common. A mode
says behind which steps progress leaves, how many steps later the mean lands, and by which optimizer the common weights follow
it; or lets every replica run at its own pace, within a bound.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recparallel.errors import ConfigError

Schedule = int | list[list[int]]


class Mode(ABC):
    """By which optimizer the common weights follow, and what each replica's progress weighs. The same on every replica; nothing
    here communicates."""

    name: ClassVar[str]

    def check_replicas(self, count: int, *, come_and_go: bool) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse options that do not go with these replicas. Override where there are such.

        Args:
            count: of replicas, at most where they come and go.

        Raises:
            ConfigError: says which.
        """

    def shares(self, targets: Sequence[float], staleness: Sequence[float]) -> list[float]:
        """What each replica's progress weighs in the mean; 1 in all.

        Args:
            targets: that each has trained on.
            staleness: of each one's progress: how many rounds its weights were behind, in the mean over its steps.
        """
        total = sum(targets)
        return [count / total if total else 1 / len(targets) for count in targets]

    def outer_optimizer(self, common: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Moves the common weights; its gradient is the mean progress, turned around. By default they move by the mean. Override
        for another."""
        return torch.optim.SGD(common, lr=1.0)


class Lockstep(Mode):
    """All replicas exchange behind the same steps.

    Attributes:
        fragments: into which the layers are dealt, each exchanged at a time of its own.
        delay: steps between the end of a step behind which progress leaves and the landing of the mean.
    """

    fragments: int = 1
    delay: int = 0

    @abstractmethod
    def leaving(self, step: int) -> list[int]:
        """Fragments whose progress leaves behind ``step``, counted from 1."""


class OwnPace(Mode):
    """Every replica runs at its own pace, and exchanges at the end of its rounds.

    Attributes:
        staleness: rounds of its own that a replica may train while an exchange is on its way; 0 waits for each.
    """

    staleness: int

    @abstractmethod
    def round_of(self, seconds: Sequence[float], number: int, step: int) -> int:
        """Steps of a replica's next round.

        Args:
            seconds: of a step, of every replica; 0 where it is not known yet.
            number: of the replica.
            step: behind which the round begins, by the replica that makes the most in each.
        """


class Rounds:
    """Steps at which rounds of local steps end.

    Args:
        local_steps: of a round; or a schedule, ``[[from step, local steps], …]``, the first from step 0.
        where: names the option in messages.

    Raises:
        ConfigError: a number is out of range, or the schedule does not begin at 0 or does not go on.

    Example:
        >>> rounds = Rounds([[0, 1], [2, 3]], where="local_steps")
        >>> [step for step in range(1, 10) if rounds.ends(step)]
        [1, 2, 5, 8]
    """

    def __init__(self, local_steps: Schedule, *, where: str) -> None:
        pairs = [[0, local_steps]] if isinstance(local_steps, int) else local_steps
        whole = (
            isinstance(pairs, list)
            and bool(pairs)
            and all(
                isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(number) is int for number in pair)
                for pair in pairs
            )
        )
        if isinstance(local_steps, bool) or not whole:
            raise ConfigError(f"{where} is a number of steps or [[from step, steps], …], got {local_steps!r}")
        starts = [start for start, _ in pairs]
        if starts[0] != 0 or starts != sorted(set(starts)) or min(steps for _, steps in pairs) < 1:
            raise ConfigError(
                f"{where}: rounds are at least 1 step long, and a schedule goes up from step 0, got {local_steps!r}"
            )
        self._pairs = pairs

    @property
    def shortest(self) -> int:
        return min(steps for _, steps in self._pairs)

    def ends(self, step: int, *, shift: int = 0) -> bool:
        """Whether a round ends behind ``step``, or did ``shift`` steps before."""
        at = step - shift
        if at < 1:
            return False
        start, steps = next(pair for pair in reversed(self._pairs) if pair[0] < at)
        return (at - start) % steps == 0


def check_number(value: object, name: str, *, least: float, below: float = math.inf, whole: bool = False) -> None:
    """Raises:
    ConfigError: ``value`` is no number, not a whole one where it must be, less than ``least``, or not below ``below``.
    """
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not least <= value < below:  # type: ignore[operator]
        kind, most = "a whole number" if whole else "a number", "" if below == math.inf else f" and below {below}"
        raise ConfigError(f"{name} must be {kind} of at least {least}{most}, got {value!r}")
