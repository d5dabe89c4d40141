"""Histories: the items of each user in the order of time, as numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Histories:
    """Each user's items, numbered ``1 … num_items``; 0 is padding.

    Args:
        user_names: name of each user, ``num_users`` of them.
        item_names: name of each item, ``num_items + 1`` of them; entry 0, the padding, is ``""``.
        sequences: for each user the items in the order of time, any integer type. In memory, or
            :class:`~recparallel.data.lists.Lists` on disk.
        timestamps: for each user when that was, int64, milliseconds since 1970 or whole numbers that order events; None where
            nothing is known but the order.
        name: of the dataset, for messages.
    """

    user_names: Sequence[str]
    item_names: Sequence[str]
    sequences: Sequence[NDArray[Any]]
    timestamps: Sequence[NDArray[np.int64]] | None = None
    name: str = ""

    @property
    def num_users(self) -> int:
        return len(self.sequences)

    @property
    def num_items(self) -> int:
        """Items without the padding; an item embedding has ``num_items + 1`` rows."""
        return len(self.item_names) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items of each user."""
        return lengths_of(self.sequences)

    def describe(self) -> dict[str, int]:
        """Counts: users, items, interactions, shortest and longest history."""
        lengths = self.lengths
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "num_interactions": int(lengths.sum()),
            "shortest": int(lengths.min()),
            "longest": int(lengths.max()),
        }


def lengths_of(lists: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """How long each is; without reading them, where they know."""
    known = getattr(lists, "lengths", None)
    if known is not None:
        return known  # type: ignore[no-any-return]
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))


def in_parts(lists: Sequence[NDArray[Any]], at_once: int = 10_000) -> Iterator[NDArray[Any]]:
    """All numbers of all lists, some lists at a time."""
    everything = iter(lists)
    while some := list(islice(everything, at_once)):
        yield np.concatenate(some)
