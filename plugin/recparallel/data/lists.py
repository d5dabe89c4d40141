"""Lists of numbers in Arrow files, mapped into memory: a list is read from disk when somebody looks at it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow
from numpy.typing import NDArray

from recparallel.errors import DataError


class Lists(Sequence[NDArray[Any]]):
    """One column of lists of several files, one after the other.

    Args:
        paths: Arrow streams, as ``datasets`` writes them, with a column of lists of numbers without nulls.
        column: its name.

    Raises:
        DataError: a file is damaged.
    """

    def __init__(self, paths: Sequence[Path], column: str) -> None:
        self._values: list[NDArray[Any]] = []
        self._offsets: list[NDArray[np.int64]] = []
        for path in paths:
            for chunk in read_mapped(path).column(column).chunks:
                self._offsets.append(chunk.offsets.to_numpy().astype(np.int64))
                self._values.append(chunk.values.to_numpy(zero_copy_only=True))
        self._ends = np.cumsum([len(offsets) - 1 for offsets in self._offsets], dtype=np.int64)
        self.lengths: NDArray[np.int64] = np.concatenate(
            [np.diff(offsets) for offsets in self._offsets] or [np.zeros(0, dtype=np.int64)]
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | Sequence[NDArray[Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"list {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, number, side="right"))
        offsets = self._offsets[part]
        local = number - int(self._ends[part]) + len(offsets) - 1
        return self._values[part][offsets[local] : offsets[local + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for values, offsets in zip(self._values, self._offsets):
            bounds = offsets.tolist()
            for begin, end in zip(bounds, bounds[1:]):
                yield values[begin:end]


def read_mapped(path: Path) -> pyarrow.Table:
    """The table of an Arrow stream, on disk until it is looked at.

    Raises:
        DataError: the file is damaged.
    """
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: damaged, or not an Arrow stream: {error}") from error
