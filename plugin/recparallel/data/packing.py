"""Which windows share a row: whole ones, as tightly as they fit, in rows of one length.

Windows of the same length can change places. So all epochs have the same lengths in the same places, and as many steps; which
window has which place changes from epoch to epoch.

Rows are filled as by best fit, longest first, all windows of a length at once, which takes time by the number of different lengths
(after Krell, Kosec, Perez & Fitzgibbon, "Efficient sequence packing without cross-contamination", arXiv:2107.02027).
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparallel.errors import ConfigError, DataError

Pattern = tuple[int, ...]
"""Lengths of the windows of one row."""


def best_fit(count_L: NDArray[np.int64], size: int) -> list[tuple[Pattern, int]]:
    """Patterns that hold all windows, and how many rows have each.

    Args:
        count_L: windows of each length, by length, from 0 to at most ``size``.
        size: positions of a row.

    Example:
        >>> best_fit(np.array([0, 0, 3, 1, 2]), 6)
        [((4, 2), 2), ((3, 2), 1)]
    """
    open_rows: dict[int, list[tuple[Pattern, int]]] = {}
    rooms: list[int] = []

    def put(room: int, pattern: Pattern, rows: int) -> None:
        if room not in open_rows:
            open_rows[room] = []
            insort(rooms, room)
        open_rows[room].append((pattern, rows))

    for length in range(len(count_L) - 1, 0, -1):
        left = int(count_L[length])
        while left:
            place = bisect_left(rooms, length)
            room, rows = size, left
            pattern: Pattern = ()
            if place < len(rooms):
                room = rooms[place]
                pattern, rows = open_rows[room].pop()
                if not open_rows[room]:
                    del open_rows[room], rooms[place]
            each = min(room // length, left)
            used = min(rows, left // each)
            put(room - each * length, (*pattern, *[length] * each), used)
            if pattern and rows > used:
                put(room, pattern, rows - used)
            left -= used * each
    return [entry for room in rooms for entry in open_rows[room]]


@dataclass(frozen=True)
class Rows:
    """Rows of an epoch: ``rows[i]`` are the numbers of the windows of row ``i``, in the order in which they stand there.

    Attributes:
        windows: of all rows, one row behind the other.
        ends: where each row ends there.
    """

    windows: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        begin = self.ends[row - 1] if row else 0
        return self.windows[begin : self.ends[row]]


class Packs:
    """Rows of several windows.

    Args:
        length_N: positions of each window.
        max_length: positions of a row.
        seed: of the places that windows of a length take.

    Raises:
        ConfigError: ``max_length`` is less than 1.
        DataError: a window has none, or more than a row.

    Example:
        >>> rows = Packs(np.array([2, 3, 1]), max_length=4, seed=0).rows(epoch=0)
        >>> [rows[i].tolist() for i in range(len(rows))]
        [[1, 2], [0]]
    """

    def __init__(self, length_N: NDArray[np.int64], *, max_length: int, seed: int) -> None:
        if max_length < 1:
            raise ConfigError(f"max_length must be at least 1, got {max_length}")
        wrong = np.flatnonzero((length_N < 1) | (length_N > max_length))
        if len(wrong):
            raise DataError(f"window {wrong[0]} has {length_N[wrong[0]]} positions; allowed are 1 to {max_length}")
        patterns = best_fit(np.bincount(length_N), max_length)
        slots = [np.tile(np.array(pattern, dtype=np.int64), rows) for pattern, rows in patterns]
        sizes = [np.full(rows, len(pattern)) for pattern, rows in patterns]
        self._length_N, self._seed = length_N, seed
        self._slots_by_length = np.argsort(np.concatenate([np.zeros(0, dtype=np.int64), *slots]), kind="stable")
        self._ends = np.cumsum(np.concatenate([np.zeros(0, dtype=np.int64), *sizes]))

    def __len__(self) -> int:
        return len(self._ends)

    def rows(self, epoch: int) -> Rows:
        """Windows of a length in the places for that length, in an order that seed and epoch give."""
        keys = np.random.default_rng([self._seed, epoch, 1]).random(len(self._length_N))
        windows = np.empty(len(self._length_N), dtype=np.int64)
        windows[self._slots_by_length] = np.lexsort((keys, self._length_N))
        return Rows(windows, self._ends)
