"""Local SGD: replicas train apart and average their weights at the end of each round (Stich, ICLR 2019)."""

from recparallel.data_parallel.mode import Lockstep, Rounds, Schedule


class LocalSGD(Lockstep):
    """Average every so many steps.

    Args:
        local_steps: of a round; a schedule as ``[[0, 1], [1000, 8]]`` begins with an average in every step (post-local SGD: Lin,
            Stich, Patel & Jaggi, ICLR 2020).

    Raises:
        ConfigError: ``local_steps`` is out of range.
    """

    name = "local_sgd"

    def __init__(self, *, local_steps: Schedule = 8) -> None:
        self._rounds = Rounds(local_steps, where="local_sgd: local_steps")

    def leaving(self, step: int) -> list[int]:
        return [0] if self._rounds.ends(step) else []
