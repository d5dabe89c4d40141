"""Leave one out: the last item of a history is for testing, the one before it for validation, the rest for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import datasets
import numpy as np
import polars as pl
from numpy.typing import NDArray

from recparallel.data.histories import Histories
from recparallel.errors import ConfigError, DataError

WINDOW_FEATURES = datasets.Features({"items": datasets.List(datasets.Value("int64"))})

EVALUATION_FEATURES = datasets.Features(
    {
        "user": datasets.Value("int64"),
        "history": datasets.List(datasets.Value("int64")),
        "target": datasets.Value("int64"),
        "seen": datasets.List(datasets.Value("int64")),
    }
)

_NUM_HELD_OUT = {"valid": 2, "test": 1}


def leave_one_out(histories: Histories) -> "Split":
    """Split every history into train (all but the last two items), valid (second last) and test (last).

    Raises:
        DataError: a history has fewer than three items.
    """
    for user, sequence in zip(histories.user_names, histories.sequences):
        if len(sequence) < 3:
            raise DataError(
                f"leave-one-out needs at least 3 items a user, but user {user!r} has {len(sequence)}; "
                f"build the histories with min_events=3 or more"
            )
    return Split(histories)


@dataclass(frozen=True)
class Split:
    """The parts of a leave-one-out split; all of them are views into ``histories``."""

    histories: Histories

    @property
    def train(self) -> list[NDArray[np.int64]]:
        """For each user the items to train on, at least one."""
        return [sequence[:-2] for sequence in self.histories.sequences]

    def train_windows(self, max_length: int) -> datasets.Dataset:
        """Cut the training histories into windows of at most ``max_length`` transitions.

        Windows are cut from a history's end and overlap by the one item that is the target of the earlier and the
        first input of the later: every transition is in exactly one window, and only a history's first window may be
        short. A history of a single item has no transition and gives none.

        Returns:
            Column ``items``: int64 lists of 2 to ``max_length + 1`` items, by user and then by time.

        Raises:
            ConfigError: ``max_length`` is less than 1.
            DataError: no history has a transition.
        """
        _check_max_length(max_length)
        windows = [
            history[max(0, end - max_length - 1) : end]
            for history in self.train
            for end in reversed(range(len(history), 1, -max_length))
        ]
        if not windows:
            raise DataError("there is nothing to train on: every training history has a single item")
        return _dataset({"items": _lists(windows)}, WINDOW_FEATURES)

    def evaluation(self, which: Literal["valid", "test"], max_length: int) -> datasets.Dataset:
        """One row a user: predict ``target`` from ``history``.

        The history of a test target includes the validation item.

        Returns:
            Columns ``user`` (int64, index into ``user_names``), ``history`` (int64 list, the last ``max_length`` items
            before the target), ``target`` (int64), ``seen`` (int64 list, all items before the target).

        Raises:
            ConfigError: ``which`` is neither, or ``max_length`` is less than 1.
        """
        if which not in _NUM_HELD_OUT:
            raise ConfigError(f"an evaluation is on 'valid' or 'test', got {which!r}")
        _check_max_length(max_length)
        held_out = _NUM_HELD_OUT[which]
        sequences = self.histories.sequences
        seen = [sequence[:-held_out] for sequence in sequences]
        columns = {
            "user": pl.Series(np.arange(len(sequences), dtype=np.int64)),
            "history": _lists([items[-max_length:] for items in seen]),
            "target": pl.Series(np.array([sequence[-held_out] for sequence in sequences], dtype=np.int64)),
            "seen": _lists(seen),
        }
        return _dataset(columns, EVALUATION_FEATURES)


def _check_max_length(max_length: int) -> None:
    if max_length < 1:
        raise ConfigError(f"max_length must be at least 1, got {max_length}")


def _lists(arrays: Sequence[NDArray[np.int64]]) -> pl.Series:
    return pl.Series(arrays, dtype=pl.List(pl.Int64))


def _dataset(columns: dict[str, pl.Series], features: datasets.Features) -> datasets.Dataset:
    return datasets.Dataset.from_polars(pl.DataFrame(columns), features=features)
