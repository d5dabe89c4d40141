"""From rows to tensors, padded on the right: to one fixed length, or each micro-batch to that of its longest window; or several
windows to a row.

Shapes: ``B`` rows of the batch, ``L`` = ``max_length`` positions, ``S`` listed pairs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recparallel.data.markers import IGNORE, PADDING
from recparallel.data.packing import Packs
from recparallel.data.sampler import EMPTY_ROW, GlobalBatchSampler
from recparallel.data.windows import Windows
from recparallel.errors import ConfigError, DataError


class PackedBatch(NamedTuple):
    """A micro-batch whose rows hold several windows, one behind the other.

    Attributes:
        inputs_BL, labels_BL: as :func:`collate_windows` makes them.
        positions_BL: each position's place in its window, int64; 0 where there is none.
        sequences: windows in it.
    """

    inputs_BL: Tensor
    labels_BL: Tensor
    positions_BL: Tensor
    sequences: int


def sequences_of(batch: Any) -> int:
    """Windows of a micro-batch; one a row where nothing says otherwise."""
    return batch.sequences if isinstance(batch, PackedBatch) else len(batch[0])


def collate_windows(
    rows: Sequence[Sequence[int] | NDArray[Any] | None], *, max_length: int, last_only: bool = False
) -> tuple[Tensor, Tensor]:
    """Make one micro-batch of windows.

    Args:
        rows: windows of 2 to ``max_length + 1`` items; None is a row without items.
        max_length: positions of the batch.
        last_only: the last item is a window's only target.

    Returns:
        ``inputs_BL`` (int64): all but the last item of each window, then 0. ``labels_BL`` (int64): the item after each
        input that is a target, else -100.

    Raises:
        DataError: a window is too short or too long.
        ConfigError: ``max_length`` is less than 1.
    """
    filled = [np.asarray([] if row is None else row, dtype=np.int64) for row in rows]
    _check_lengths(np.array([len(row) for row in filled if len(row)], dtype=np.int64), max_length=max_length)
    return _batch(filled, max_length, last_only=last_only)


def first_rows(rows: Any, count: int, *, max_length: int) -> tuple[Tensor, Tensor]:
    """A micro-batch of the first ``count`` of what a :class:`WindowLoader` takes."""
    windows = Windows.of(rows[:count] if not isinstance(rows, Windows) else rows)
    some = [windows.items(i) for i in range(min(count, len(windows)))]
    return collate_windows(some, max_length=max_length, last_only=windows.last_only)


class WindowLoader:
    """Iterate over a sampler's steps as tensors: the rest of its current epoch.

    Every step is a list of micro-batches ``(inputs_BL, labels_BL)`` as :func:`collate_windows` makes them. A replica reads the
    windows of its own rows, and no others.

    Args:
        rows: what :meth:`~recparallel.data.splits.base.Split.train_windows` returns, or a ``datasets.Dataset`` with lists
            ``items``.
        sampler: says which rows; its state is the loader's.
        max_length: positions of a batch, at least the ``max_length`` that the windows were cut for.
        dynamic: a micro-batch has as many positions as its longest window, rounded up to a multiple of ``multiple``.
        multiple: see there.

    Raises:
        DataError: the sampler was made for another number of rows, or a window is longer than ``max_length + 1``.
    """

    def __init__(
        self,
        rows: Any,
        sampler: GlobalBatchSampler,
        *,
        max_length: int,
        dynamic: bool = False,
        multiple: int = 8,
    ) -> None:
        if len(rows) != sampler.num_rows:
            raise DataError(f"the sampler was made for {sampler.num_rows} rows, but the dataset has {len(rows)}")
        self._windows = Windows.of(rows)
        _check_lengths(self._windows.lengths, max_length=max_length)
        self.sampler = sampler
        self._max_length = max_length
        self._multiple = multiple if dynamic else None

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        for micro_batches in self.sampler:
            yield [self._micro_batch(index) for index in micro_batches]

    def _micro_batch(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        windows = [self._windows.items(i) if i != EMPTY_ROW else _NOTHING for i in index.tolist()]
        length = self._max_length
        if self._multiple is not None:
            longest = max(1, *(len(window) - 1 for window in windows))
            length = min(length, -(-longest // self._multiple) * self._multiple)
        return _batch(windows, length, last_only=self._windows.last_only)


class PackedLoader:
    """Iterate over a sampler's steps as a :class:`WindowLoader` does, with several windows to a row, whole ones
    (:mod:`recparallel.data.packing`). Micro-batches are :class:`PackedBatch`.

    Args:
        rows: as of a :class:`WindowLoader`.
        packs: which windows share a row.
        sampler: says which rows; its state is the loader's.
        max_length: positions of a row.

    Raises:
        DataError: the sampler was made for another number of rows.
    """

    def __init__(self, rows: Any, packs: Packs, sampler: GlobalBatchSampler, *, max_length: int) -> None:
        if len(packs) != sampler.num_rows:
            raise DataError(f"the sampler was made for {sampler.num_rows} rows, but the windows make {len(packs)}")
        self._windows, self._packs = Windows.of(rows), packs
        self.sampler = sampler
        self._max_length = max_length

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        packs = self._packs.rows(self.sampler.epoch)
        for micro_batches in self.sampler:
            yield [
                packed_batch(self._windows, [packs[i] if i != EMPTY_ROW else _NOTHING for i in index], self._max_length)
                for index in micro_batches
            ]


def packed_batch(windows: Windows, rows: Sequence[NDArray[np.int64]], max_length: int) -> PackedBatch:
    """The windows of these numbers, those of a row one behind the other."""
    shape = (len(rows), max_length)
    inputs_BL = np.full(shape, PADDING, dtype=np.int64)
    labels_BL = np.full(shape, IGNORE, dtype=np.int64)
    positions_BL = np.zeros(shape, dtype=np.int64)
    for row, numbers in enumerate(rows):
        begin = 0
        for number in numbers.tolist():
            items = windows.items(number)
            end = begin + len(items) - 1
            first = end - 1 if windows.last_only else begin
            inputs_BL[row, begin:end] = items[:-1]
            labels_BL[row, first:end] = items[first - begin + 1 :]
            positions_BL[row, begin:end] = np.arange(end - begin)
            begin = end
    inputs, labels, positions = map(torch.from_numpy, (inputs_BL, labels_BL, positions_BL))
    return PackedBatch(inputs, labels, positions, sequences=sum(map(len, rows)))


_NOTHING = np.zeros(0, dtype=np.int64)


def _batch(windows: Sequence[NDArray[Any]], length: int, *, last_only: bool) -> tuple[Tensor, Tensor]:
    inputs_BL = np.full((len(windows), length), PADDING, dtype=np.int64)
    labels_BL = np.full((len(windows), length), IGNORE, dtype=np.int64)
    for row, items in enumerate(windows):
        count = len(items) - 1
        if count > 0:
            first = count - 1 if last_only else 0
            inputs_BL[row, :count] = items[:-1]
            labels_BL[row, first:count] = items[first + 1 :]
    return torch.from_numpy(inputs_BL), torch.from_numpy(labels_BL)


def _check_lengths(lengths: NDArray[np.int64], *, max_length: int) -> None:
    if max_length < 1:
        raise ConfigError(f"max_length must be at least 1, got {max_length}")
    wrong = np.flatnonzero((lengths < 2) | (lengths > max_length + 1))
    if len(wrong):
        raise DataError(
            f"window {wrong[0]} has {lengths[wrong[0]]} items; allowed are 2 to max_length + 1 = {max_length + 1}"
        )


@dataclass(frozen=True)
class EvaluationBatch:
    """One batch of users to rank items for.

    Args:
        inputs_BL: histories, int64, padded with 0 on the right.
        last_B: position of each history's last item, int64; 0 where there is no user.
        target_B: the item to predict, int64; 0 where there is no user.
        listed_rows: row of each pair of a row and an item that its protocol lists, int64, shape ``(S,)``.
        listed_cols: item of each such pair, int64, shape ``(S,)``.
        valid_B: bool; False in the rows that fill up the last batch.
    """

    inputs_BL: Tensor
    last_B: Tensor
    target_B: Tensor
    listed_rows: Tensor
    listed_cols: Tensor
    valid_B: Tensor


def collate_evaluation(rows: Sequence[Mapping[str, Any]], *, max_length: int, batch_size: int) -> EvaluationBatch:
    """Make one batch of evaluation rows, filled up to ``batch_size``.

    Args:
        rows: rows of :meth:`~recparallel.data.splits.base.Split.evaluation`, at most ``batch_size``.
        max_length: positions of the batch; of a longer history the last ``max_length`` items are taken.
        batch_size: ``B``.

    Raises:
        DataError: too many rows, or a row without history.
    """
    if len(rows) > batch_size:
        raise DataError(f"{len(rows)} rows do not fit into a batch of batch_size={batch_size}")
    inputs_BL = np.full((batch_size, max_length), PADDING, dtype=np.int64)
    last_B = np.zeros(batch_size, dtype=np.int64)
    target_B = np.zeros(batch_size, dtype=np.int64)
    for i, row in enumerate(rows):
        history = row["history"][-max_length:]
        if not len(history):
            raise DataError(f"user {row['user']} has no history to predict from")
        inputs_BL[i, : len(history)] = history
        last_B[i] = len(history) - 1
        target_B[i] = row["target"]
    listed = [np.asarray(row["listed"], dtype=np.int64) for row in rows]
    return EvaluationBatch(
        inputs_BL=torch.from_numpy(inputs_BL),
        last_B=torch.from_numpy(last_B),
        target_B=torch.from_numpy(target_B),
        listed_rows=torch.from_numpy(np.repeat(np.arange(len(rows), dtype=np.int64), [len(items) for items in listed])),
        listed_cols=torch.from_numpy(np.concatenate([_NOTHING, *listed])),
        valid_B=torch.arange(batch_size) < len(rows),
    )


def evaluation_batches(
    rows: Sequence[Mapping[str, Any]], *, max_length: int, batch_size: int
) -> Iterator[EvaluationBatch]:
    """Give the rows of :meth:`~recparallel.data.splits.base.Split.evaluation` as batches of one shape, in order."""
    for first in range(0, len(rows), batch_size):
        some = [rows[i] for i in range(first, min(first + batch_size, len(rows)))]
        yield collate_evaluation(some, max_length=max_length, batch_size=batch_size)


class NumberedBatches(Sized, Iterable[EvaluationBatch]):
    """As many batches of ``rows``, made one after the other; behind the last of them, batches without a user.

    Args:
        count: of batches.
        rows, max_length, batch_size: see :func:`evaluation_batches`.
    """

    def __init__(self, count: int, rows: Sequence[Mapping[str, Any]], *, max_length: int, batch_size: int) -> None:
        self._count, self._rows = count, rows
        self._shape = {"max_length": max_length, "batch_size": batch_size}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[EvaluationBatch]:
        filling = repeat(collate_evaluation([], **self._shape))
        return islice(chain(evaluation_batches(self._rows, **self._shape), filling), self._count)
