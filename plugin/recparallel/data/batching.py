"""From rows to tensors, padded on the right: to one fixed length, or each micro-batch to that of its longest window.

Shapes: ``B`` rows of the batch, ``L`` = ``max_length`` positions, ``S`` seen pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recparallel.data.markers import IGNORE, PADDING
from recparallel.data.sampler import GlobalBatchSampler
from recparallel.errors import ConfigError, DataError


def collate_windows(rows: Sequence[list[int] | None], *, max_length: int) -> tuple[Tensor, Tensor]:
    """Make one micro-batch of windows.

    Args:
        rows: windows of 2 to ``max_length + 1`` items; None is a row without items.
        max_length: positions of the batch.

    Returns:
        ``inputs_BL`` (int64): all but the last item of each window, then 0. ``labels_BL`` (int64): the item after each
        input, then -100.

    Raises:
        DataError: a window is too short or too long.
    """
    filled = [row or [] for row in rows]
    windows = _Windows.from_lists([row for row in filled if row], max_length=max_length)
    index = np.cumsum([bool(row) for row in filled], dtype=np.int64) - 1
    return windows.batch(np.where([bool(row) for row in filled], index, -1).astype(np.int64))


class WindowLoader:
    """Iterate over a sampler's steps as tensors: the rest of its current epoch.

    Every step is a list of micro-batches ``(inputs_BL, labels_BL)`` as :func:`collate_windows` makes them.

    Args:
        dataset: what :meth:`~recparallel.data.splits.Split.train_windows` returns; copied into flat arrays once.
        sampler: says which rows; its state is the loader's.
        max_length: positions of a batch, at least the ``max_length`` that the windows were cut for.
        dynamic: a micro-batch has as many positions as its longest window, rounded up to a multiple of ``multiple``.
        multiple: see there.

    Raises:
        DataError: the sampler was made for another number of rows, or a window is longer than ``max_length + 1``.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        sampler: GlobalBatchSampler,
        *,
        max_length: int,
        dynamic: bool = False,
        multiple: int = 8,
    ) -> None:
        if len(dataset) != sampler.num_rows:
            raise DataError(f"the sampler was made for {sampler.num_rows} rows, but the dataset has {len(dataset)}")
        column = dataset.to_polars()["items"]
        self._windows = _Windows(
            column.explode().to_numpy().astype(np.int64), _offsets(column.list.len().to_numpy()), max_length=max_length
        )
        self.sampler = sampler
        self._multiple = multiple if dynamic else None

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        for micro_batches in self.sampler:
            yield [self._windows.batch(index, multiple=self._multiple) for index in micro_batches]


class _Windows:
    """Windows one after the other in ``items``; window ``i`` is ``items[offsets[i]:offsets[i + 1]]``."""

    def __init__(self, items: NDArray[np.int64], offsets: NDArray[np.int64], *, max_length: int) -> None:
        if max_length < 1:
            raise ConfigError(f"max_length must be at least 1, got {max_length}")
        lengths = np.diff(offsets)
        wrong = np.flatnonzero((lengths < 2) | (lengths > max_length + 1))
        if len(wrong):
            raise DataError(
                f"window {wrong[0]} has {lengths[wrong[0]]} items; allowed are 2 to max_length + 1 = {max_length + 1}"
            )
        # The last transition's label is one past it; a row of nothing may point anywhere inside.
        self._items = np.concatenate([items, np.zeros(max_length + 1, dtype=np.int64)])
        self._starts = np.append(offsets[:-1], 0)
        self._num_transitions = np.append(lengths - 1, 0)
        self._positions = np.arange(max_length)

    @classmethod
    def from_lists(cls, rows: Sequence[list[int]], *, max_length: int) -> "_Windows":
        items = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
        return cls(items, _offsets(np.array([len(row) for row in rows], dtype=np.int64)), max_length=max_length)

    def batch(self, index: NDArray[np.int64], *, multiple: int | None = None) -> tuple[Tensor, Tensor]:
        """``inputs_BL`` and ``labels_BL`` of the windows ``index``; -1, the tables' last entry, is a row of nothing.

        Args:
            multiple: L is the length of the longest, rounded up to a multiple of this; without it, ``max_length``.
        """
        positions = self._positions
        if multiple is not None:
            positions = positions[: max(multiple, -(-int(self._num_transitions[index].max()) // multiple) * multiple)]
        at_BL = self._starts[index][:, None] + positions
        real_BL = positions < self._num_transitions[index][:, None]
        inputs_BL = np.where(real_BL, self._items[at_BL], PADDING)
        labels_BL = np.where(real_BL, self._items[at_BL + 1], IGNORE)
        return torch.from_numpy(inputs_BL), torch.from_numpy(labels_BL)


@dataclass(frozen=True)
class EvaluationBatch:
    """One batch of users to rank items for.

    Args:
        inputs_BL: histories, int64, padded with 0 on the right.
        last_B: position of each history's last item, int64; 0 where there is no user.
        target_B: the item to predict, int64; 0 where there is no user.
        seen_rows: row of each pair of a row and an item that must not be ranked in it, int64, shape ``(S,)``.
        seen_cols: item of each such pair, int64, shape ``(S,)``.
        valid_B: bool; False in the rows that fill up the last batch.
    """

    inputs_BL: Tensor
    last_B: Tensor
    target_B: Tensor
    seen_rows: Tensor
    seen_cols: Tensor
    valid_B: Tensor


def collate_evaluation(rows: Sequence[Mapping[str, Any]], *, max_length: int, batch_size: int) -> EvaluationBatch:
    """Make one batch of evaluation rows, filled up to ``batch_size``.

    Args:
        rows: rows of :meth:`~recparallel.data.splits.Split.evaluation`, at most ``batch_size``.
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
    num_seen = [len(row["seen"]) for row in rows]
    return EvaluationBatch(
        inputs_BL=torch.from_numpy(inputs_BL),
        last_B=torch.from_numpy(last_B),
        target_B=torch.from_numpy(target_B),
        seen_rows=torch.from_numpy(np.repeat(np.arange(len(rows), dtype=np.int64), num_seen)),
        seen_cols=torch.from_numpy(np.fromiter(chain.from_iterable(row["seen"] for row in rows), dtype=np.int64)),
        valid_B=torch.arange(batch_size) < len(rows),
    )


def evaluation_batches(dataset: datasets.Dataset, *, max_length: int, batch_size: int) -> Iterator[EvaluationBatch]:
    """Give the rows of :meth:`~recparallel.data.splits.Split.evaluation` as batches of one shape, in order."""
    for columns in dataset.iter(batch_size=batch_size):
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        yield collate_evaluation(rows, max_length=max_length, batch_size=batch_size)


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
