"""Delayed averaging: the average arrives some steps late, and its exchange is hidden behind them (DaSGD: Zhou et al., 2020).

A replica goes on from its own weights meanwhile. When the mean lands, what the replica has learned since is kept on top of it: this
is the correction.
"""

from recparallel.data_parallel.mode import Lockstep, Rounds, check_number
from recparallel.errors import ConfigError


class Delayed(Lockstep):
    """Average every so many steps, some steps late.

    Args:
        delay: steps; 0 is local SGD.
        local_steps: between two departures.

    Raises:
        ConfigError: a number is out of range, or an average would arrive behind the next departure.
    """

    name = "delayed"

    def __init__(self, *, delay: int = 1, local_steps: int | None = None) -> None:
        check_number(delay, "delayed: delay", least=0, whole=True)
        self.delay = delay
        steps = max(1, self.delay) if local_steps is None else local_steps
        self._rounds = Rounds(steps, where="delayed: local_steps")
        if self.delay > self._rounds.shortest:
            raise ConfigError(
                f"delayed: delay is {delay} with local_steps {steps}: the average must arrive before the next leaves; delay can be "
                f"at most {self._rounds.shortest}"
            )

    def leaving(self, step: int) -> list[int]:
        return [0] if self._rounds.ends(step) else []
