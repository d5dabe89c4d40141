"""Windows: the pieces of histories that a model trains on, as places in the histories rather than as copies."""

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from recparallel.errors import ConfigError, DataError

WINDOW_FEATURES = datasets.Features({"items": datasets.List(datasets.Value("int64"))})


class Windows:
    """Some consecutive items of some sequences. A row is ``{"items": [...]}``, as of a ``datasets.Dataset``.

    Args:
        sequences: items of each user.
        sequence_N, start_N, stop_N: window ``n`` is ``sequences[sequence_N[n]][start_N[n]:stop_N[n]]``.
        last_only: the last item of a window is its only target; otherwise each but the first is one.
    """

    def __init__(
        self,
        sequences: Sequence[NDArray[Any]],
        sequence_N: NDArray[np.int64],
        start_N: NDArray[np.int64],
        stop_N: NDArray[np.int64],
        *,
        last_only: bool = False,
    ) -> None:
        self.sequences = sequences
        self.last_only = last_only
        self.sequence_N, self.start_N, self.stop_N = sequence_N, start_N, stop_N

    @classmethod
    def cut(cls, sequences: Sequence[NDArray[Any]], ends_U: NDArray[np.int64], max_length: int) -> "Windows":
        """Cut the beginnings of sequences into windows of at most ``max_length`` transitions.

        Windows are cut from the end and overlap by the one item that is the target of the earlier and the first input of
        the later: every transition is in exactly one window, and only a sequence's first window may be short. A single
        item has no transition and gives none.

        Args:
            sequences: items of each user.
            ends_U: how many of them are cut.
            max_length: transitions of a window.

        Returns:
            Windows of 2 to ``max_length + 1`` items, by user and then by time.

        Raises:
            ConfigError: ``max_length`` is less than 1.
            DataError: there is no transition.
        """
        if max_length < 1:
            raise ConfigError(f"max_length must be at least 1, got {max_length}")
        count_U = -(-np.maximum(ends_U - 1, 0) // max_length)
        if not count_U.sum():
            raise DataError("there is nothing to train on: no user has two items to train on")
        sequence_N = np.repeat(np.arange(len(ends_U), dtype=np.int64), count_U)
        first_N = np.repeat(np.cumsum(count_U) - count_U, count_U)
        to_end_N = count_U[sequence_N] - 1 - (np.arange(len(sequence_N)) - first_N)
        stop_N = ends_U[sequence_N] - to_end_N * max_length
        return cls(sequences, sequence_N, np.maximum(stop_N - max_length - 1, 0), stop_N)

    @classmethod
    def of(cls, rows: Any) -> "Windows":
        """These windows, or those of a ``datasets.Dataset`` with a column ``items`` of lists."""
        if isinstance(rows, cls):
            return rows
        lists = [np.asarray(items, dtype=np.int64) for items in rows["items"]]
        lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
        return cls(lists, np.arange(len(lists), dtype=np.int64), np.zeros(len(lists), dtype=np.int64), lengths)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items of each window."""
        return self.stop_N - self.start_N

    def items(self, index: int) -> NDArray[Any]:
        """Those of one window."""
        return self.sequences[int(self.sequence_N[index])][self.start_N[index] : self.stop_N[index]]

    def __len__(self) -> int:
        return len(self.sequence_N)

    def __getitem__(self, index: int | slice) -> dict[str, Any]:
        if isinstance(index, slice):
            return {"items": [self.items(i).tolist() for i in range(*index.indices(len(self)))]}
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return {"items": self.items(index).tolist()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))
