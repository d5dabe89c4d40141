"""Modes in which all exchange behind the same steps, for replicas that come and go: each counts its rounds by itself."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from recparallel.data_parallel.mode import Lockstep, Mode, OwnPace
from recparallel.errors import ConfigError


class InRounds(OwnPace):
    """Rounds of ``mode``, each exchange of which is waited for: the same weights where nobody comes or goes.

    Raises:
        ConfigError: its exchanges overlap: who is lost would leave them half done.
    """

    staleness = 0

    def __init__(self, mode: Lockstep) -> None:
        if mode.fragments > 1 or mode.delay:
            raise ConfigError(
                f"recparallel.data_parallel.elastic: mode {mode.name!r} with exchanges that land later, or by fragments, does not "
                "run with replicas that come and go; allowed are local_sgd, diloco without fragments and overlap, and "
                "bounded_staleness"
            )
        self._mode = mode

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._mode.name

    def round_of(self, seconds: Sequence[float], number: int, step: int) -> int:
        steps = 1
        while not self._mode.leaving(step + steps):
            steps += 1
        return steps

    def shares(self, targets: Sequence[float], staleness: Sequence[float]) -> list[float]:
        return self._mode.shares(targets, staleness)

    def outer_optimizer(self, common: Iterable[Tensor]) -> torch.optim.Optimizer:
        return self._mode.outer_optimizer(common)


def of_those_that_come_and_go(mode: Mode) -> OwnPace:
    """The mode as replicas that come and go run it.

    Raises:
        ConfigError: they cannot.
    """
    if isinstance(mode, OwnPace):
        return mode
    assert isinstance(mode, Lockstep), mode
    return InRounds(mode)
