"""From the steps of a run in which a node became slow and recovered, to the figures that are published."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

STEADY = 3
"""Steps by whose median a moment is judged."""

REACHED = 0.9
"""Share of the optimum's throughput that counts as reached."""


@dataclass(frozen=True)
class Schedule:
    """Of a run: the node is slow from step ``slow`` up to, not including, step ``recovered``; ``steps`` in all, counted from 1."""

    slow: int = 13
    recovered: int = 45
    steps: int = 66

    @property
    def traced(self) -> tuple[int, ...]:
        """Steps that pictures show: before, while it is slow and nothing has moved, and behind the move."""
        return self.slow - 2, self.slow + 2, self.recovered - 2


@dataclass(frozen=True)
class Story:
    """What happened in one run.

    Attributes:
        before: seconds of a step at first.
        dropped: the same while the node is slow and no layer has moved.
        settled: while it is slow, at the end of that time.
        again: at the end of the run.
        steps_to_reach: after the node became slow, until steps were as fast as 90 % of the optimum; None is never.
        steps_to_return: the same after it recovered, of the steps before.
        moves: ``(step, seconds, steps' worth of it)``, those that were made.
    """

    before: float
    dropped: float
    settled: float
    again: float
    steps_to_reach: int | None
    steps_to_return: int | None
    moves: tuple[tuple[int, float, float], ...]


def tell(steps: Sequence[dict[str, Any]], moves: Sequence[dict[str, Any]], optimum: float, at: Schedule) -> Story:
    """The story of a run.

    Args:
        steps: of rank 0, in order.
        moves: :class:`recparallel.events.Move` as dicts.
        optimum: seconds of a step with the best cut for the slow node.
        at: when what happened.
    """
    seconds = [step["seconds"] for step in steps]
    slow, recovered = at.slow - 1, at.recovered - 1
    done = [move for move in moves if not move["error"]]
    first_move = min((move["step"] for move in done if move["step"] > slow), default=at.recovered)
    before = median(seconds[slow - 2 * STEADY : slow])
    # The change is made up to 0.1 s behind the step's begin: the step in which it comes is neither fast nor slow.
    dropped = median(seconds[slow + 1 : max(first_move - 1, slow + 2)])
    cost = []
    for move in done:
        near = seconds[move["step"] : move["step"] + 2 * STEADY] or seconds[-1:]
        cost.append((move["step"], move["seconds"], move["seconds"] / median(near)))
    return Story(
        before=before,
        dropped=dropped,
        settled=median(seconds[recovered - 2 * STEADY : recovered]),
        again=median(seconds[-2 * STEADY :]),
        steps_to_reach=_until(seconds[slow:recovered], optimum),
        steps_to_return=_until(seconds[recovered:], before),
        moves=tuple(cost),
    )


def _until(seconds: Sequence[float], goal: float) -> int | None:
    """Steps before the first from which on :data:`STEADY` steps have a median of at most ``goal / REACHED``."""
    for number in range(len(seconds) - STEADY + 1):
        if median(seconds[number : number + STEADY]) * REACHED <= goal:
            return number
    return None
