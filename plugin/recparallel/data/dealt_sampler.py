"""Batches that are dealt out to replicas as they come for them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparallel.data.sampler import GlobalBatchSampler


class DealtSampler(GlobalBatchSampler):
    """A replica's next batch is the one that no other has taken: a faster replica reads more of them.

    A global batch has a part for every world of replicas; parts are numbered from the start of the training and dealt in order, so
    that an epoch has every row once, whoever reads it. An epoch ends for a replica when it is dealt a part of a later one, with
    which it then begins.

    Args:
        worlds: of replicas that come for parts, each with ``num_replicas / worlds`` data-parallel ranks.
        deal: gives the number of the next part; the same on every rank of a world. Its arguments: the number of the first part
            that is dealt, and how often all samplers have gone to another place since they were made.
        trained: steps of the training since the start, or since a state was loaded, counted alike in all worlds.
        others: of :class:`GlobalBatchSampler`; ``replica`` is this rank's place among those of its own world.
    """

    def __init__(
        self, num_rows: int, *, worlds: int, deal: Callable[[int, int], int], trained: Callable[[], int], **others: Any
    ) -> None:
        super().__init__(num_rows, **others)
        self._worlds, self._deal, self._trained = worlds, deal, trained
        self._restarts = self._start = self._begun_at = 0
        self._dealt: int | None = None

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            super().set_epoch(epoch)
            self._begin_here()

    def __iter__(self) -> Iterator[list[NDArray[np.int64]]]:
        epoch, inside = self.epoch, self.num_replicas // self._worlds
        rows = self._epoch_rows(epoch)
        while self.epoch == epoch:
            if self._dealt is None:
                self._dealt = self._deal(self._start, self._restarts)
            step, world = divmod(self._dealt - epoch * self.steps_per_epoch * self._worlds, self._worlds)
            if step >= self.steps_per_epoch:
                self.epoch, self.step = epoch + step // self.steps_per_epoch, 0
                return
            self._dealt = None
            yield list(rows[step, world * inside + self.replica])

    def state_dict(self) -> dict[str, Any]:
        """Where the training is: what is dealt out, and not yet counted by all, is read again."""
        epoch, step = divmod(self._begun_at + self._trained(), self.steps_per_epoch)
        return {"epoch": epoch, "step": step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._begin_here()

    def _begin_here(self) -> None:
        place = self.epoch * self.steps_per_epoch + self.step
        self._restarts, self._dealt = self._restarts + 1, None
        self._start, self._begun_at = place * self._worlds, place - self._trained()
