"""Which rows every replica reads at every step, independent of how the global batch is divided."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparallel.errors import ConfigError, DataError

EMPTY_ROW = -1
"""The index that fills up the last global batch of an epoch; it stands for a row without targets."""


class GlobalBatchSampler:
    """Deal the rows of a dataset out to replicas, one global batch a step.

    Steps:
        1. Seed and epoch give a permutation of the rows.
        2. The global batch of step ``t`` is the permutation's ``t``-th slice of ``num_replicas · num_micro_batches ·
           micro_batch`` rows. The last one is filled up with ``EMPTY_ROW``: no row is dropped and none repeated.
        3. A global batch is laid out replica-major: replica 0's micro-batches in order, then replica 1's, and so on. A
           single replica with ``num_replicas · num_micro_batches`` micro-batches reads the same micro-batches in the
           same order.

    Iterating gives the rest of the current epoch, a list of ``num_micro_batches`` int64 arrays of length
    ``micro_batch`` a step; the next iteration starts the next epoch. ``epoch`` and ``step`` name the batch that comes
    next, so a state that is saved after a step's work leads on to the step after it, and one that is saved after an
    epoch's last step to the next epoch.

    Args:
        num_rows: rows of the dataset.
        micro_batch: rows of a micro-batch.
        num_micro_batches: micro-batches of a replica a step.
        num_replicas: data-parallel replicas.
        replica: which of them this is, from 0.
        seed: of the permutations.
        shuffle: False reads the rows in order, the same in every epoch.

    Raises:
        ConfigError: a count is less than 1, or ``replica`` is not below ``num_replicas``.
        DataError: there is no row.

    Example:
        >>> sampler = GlobalBatchSampler(
        ...     3, micro_batch=1, num_micro_batches=2, num_replicas=1, replica=0, seed=0, shuffle=False)
        >>> [[rows.tolist() for rows in micro_batches] for micro_batches in sampler]
        [[[0], [1]], [[2], [-1]]]
    """

    def __init__(
        self,
        num_rows: int,
        *,
        micro_batch: int,
        num_micro_batches: int,
        num_replicas: int,
        replica: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        if num_rows < 1:
            raise DataError(f"a sampler needs at least one row, got num_rows={num_rows}")
        counts = {"micro_batch": micro_batch, "num_micro_batches": num_micro_batches, "num_replicas": num_replicas}
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"{name} must be at least 1, got {count}")
        if not 0 <= replica < num_replicas:
            raise ConfigError(
                f"replica must be from 0 to {num_replicas - 1} (num_replicas={num_replicas}), got {replica}"
            )
        if seed < 0:
            raise ConfigError(f"seed must not be negative, got {seed}")
        self.num_rows = num_rows
        self.micro_batch = micro_batch
        self.num_micro_batches = num_micro_batches
        self.num_replicas = num_replicas
        self.replica = replica
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.step = 0

    @property
    def global_batch(self) -> int:
        """Rows of all replicas a step."""
        return self.num_replicas * self.num_micro_batches * self.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.global_batch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; stay where it is if that is the current epoch, so that a resumed loop may call
        it too.

        Raises:
            ConfigError: ``epoch`` is negative.
        """
        if epoch < 0:
            raise ConfigError(f"epoch must not be negative, got {epoch}")
        if epoch != self.epoch:
            self.epoch, self.step = epoch, 0

    def __iter__(self) -> Iterator[list[NDArray[np.int64]]]:
        epoch = self.epoch
        rows = self._epoch_rows(epoch)
        while self.epoch == epoch:
            step = self.step
            self.epoch, self.step = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            yield self._own(rows[step])

    def _own(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """This replica's micro-batches of a step, of which ``rows`` has the shape (replicas, micro-batches, micro_batch)."""
        return list(rows[self.replica])

    def _epoch_rows(self, epoch: int) -> NDArray[np.int64]:
        """Row numbers, shape (steps, replicas, micro-batches of a replica, micro_batch)."""
        rows = np.full(self.steps_per_epoch * self.global_batch, EMPTY_ROW, dtype=np.int64)
        rows[: self.num_rows] = (
            np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            if self.shuffle
            else np.arange(self.num_rows)
        )
        return rows.reshape(self.steps_per_epoch, self.num_replicas, self.num_micro_batches, self.micro_batch)

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is: plain numbers, the same on every replica."""
        return {"epoch": self.epoch, "step": self.step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another sampler was, whatever its number of replicas.

        Raises:
            DataError: the other one samples other rows, in another order, or in other global batches; or the state is
                incomplete.
        """
        missing = {*self.state_dict()} - {*state}
        if missing:
            raise DataError(
                f"the sampler's state lacks {', '.join(sorted(missing))}; it has {', '.join(sorted(state))}"
            )
        for name, mine in self._identity().items():
            if state[name] != mine:
                raise DataError(
                    f"the sampler's state was saved with {name}={state[name]}, but this sampler has {name}={mine}; "
                    f"it cannot go on in the middle of another order of rows"
                )
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise DataError(
                f"the sampler's state says epoch {epoch}, step {step}; allowed are epochs from 0 and steps from 0 to "
                f"{self.steps_per_epoch - 1}"
            )
        self.epoch, self.step = epoch, step

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "num_rows": self.num_rows,
            "global_batch": self.global_batch,
            "shuffle": self.shuffle,
        }
