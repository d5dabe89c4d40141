"""Histories: the items of each user in the order of time, as numbers."""

import logging
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recparallel.data.log import InteractionLog
from recparallel.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Histories:
    """Each user's items, numbered ``1 … num_items``; 0 is padding.

    Users and items are numbered by their names, shorter names first and equally long ones by code point: numeric ids
    come out in numeric order, and the order of the files does not matter.

    Args:
        user_names: name of each user, ``num_users`` of them.
        item_names: name of each item, ``num_items + 1`` of them; entry 0, the padding, is ``""``.
        sequences: for each user the items in the order of time, int64.
        num_duplicates: exact duplicate rows of the log that were dropped.
        num_short_users: users that were dropped for having too few events.
        num_short_events: events of those users.
    """

    user_names: list[str]
    item_names: list[str]
    sequences: list[NDArray[np.int64]]
    num_duplicates: int = 0
    num_short_users: int = 0
    num_short_events: int = 0

    @classmethod
    def from_log(cls, log: InteractionLog, *, min_events: int = 3) -> "Histories":
        """Sort a log by user, timestamp and file order, and number what is left of it.

        Steps:
            1. Drop rows that repeat an earlier one in every column.
            2. Drop users with fewer than ``min_events`` events.
            3. Number the users and items that are left.

        Args:
            log: any reader's.
            min_events: fewest events that a user may have; 3 is what :func:`~recparallel.data.splits.leave_one_out`
                needs.

        Raises:
            ConfigError: ``min_events`` is less than 1.
            DataError: nothing is left.
        """
        if min_events < 1:
            raise ConfigError(f"min_events must be at least 1, got {min_events}")
        rows = log.interactions.to_polars()
        table = rows.unique(maintain_order=True)
        kept = table.filter(pl.len().over("user") >= min_events)
        num_short_users = table["user"].n_unique() - kept["user"].n_unique()
        if rows.height > table.height:
            logger.warning("%s: dropped %d exact duplicate rows", log.name, rows.height - table.height)
        if num_short_users:
            logger.warning("%s: dropped %d users with fewer than %d events", log.name, num_short_users, min_events)
        if kept.height == 0:
            raise DataError(
                f"dataset {log.name!r}: no history is left: none of its {table['user'].n_unique()} users has "
                f"{min_events} events (min_events)"
            )
        users, items = _by_name(kept["user"]), _by_name(kept["item"])
        kept = kept.select(
            pl.col("user").replace_strict(users, pl.int_range(len(users), eager=True), return_dtype=pl.Int64),
            pl.col("item").replace_strict(items, pl.int_range(1, len(items) + 1, eager=True), return_dtype=pl.Int64),
            "timestamp",
        ).sort("user", "timestamp", maintain_order=True)
        counts = np.bincount(kept["user"].to_numpy(), minlength=len(users))
        return cls(
            user_names=users.to_list(),
            item_names=["", *items.to_list()],
            sequences=np.split(kept["item"].to_numpy(writable=True), np.cumsum(counts)[:-1]),
            num_duplicates=rows.height - table.height,
            num_short_users=num_short_users,
            num_short_events=table.height - kept.height,
        )

    @property
    def num_users(self) -> int:
        return len(self.user_names)

    @property
    def num_items(self) -> int:
        """Items without the padding; an item embedding has ``num_items + 1`` rows."""
        return len(self.item_names) - 1

    def describe(self) -> dict[str, int]:
        """Counts: users, items, interactions, shortest and longest history, and what was dropped."""
        lengths = [len(sequence) for sequence in self.sequences]
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "num_interactions": sum(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
            "num_duplicates": self.num_duplicates,
            "num_short_users": self.num_short_users,
            "num_short_events": self.num_short_events,
        }


def _by_name(names: pl.Series) -> pl.Series:
    table = names.unique().to_frame("name")
    return table.sort(pl.col("name").str.len_chars(), pl.col("name"))["name"]
