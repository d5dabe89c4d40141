"""What readers give: who did what and when, and what the items are called. The same columns whatever the source."""

from collections.abc import Iterable
from dataclasses import dataclass

import datasets
import polars as pl

from recparallel.data.malformed import MalformedReport

INTERACTION_FEATURES = datasets.Features(
    {
        "user": datasets.Value("string"),
        "item": datasets.Value("string"),
        "timestamp": datasets.Value("int64"),
        "rating": datasets.Value("float32"),
    }
)

ITEM_FEATURES = datasets.Features(
    {
        "item": datasets.Value("string"),
        "title": datasets.Value("string"),
        "genres": datasets.List(datasets.Value("string")),
    }
)

INTERACTIONS: dict[str, pl.DataType] = {
    "user": pl.String(),
    "item": pl.String(),
    "timestamp": pl.Int64(),
    "rating": pl.Float32(),
}
"""The same as a table's schema."""

ITEMS: dict[str, pl.DataType] = {"item": pl.String(), "title": pl.String(), "genres": pl.List(pl.String())}


@dataclass(frozen=True)
class InteractionLog:
    """One log of interactions, in memory: to look at, or small.

    Args:
        name: the dataset's name, as in the registry.
        interactions: columns of ``INTERACTION_FEATURES``, in file order; timestamps in milliseconds since 1970, or whole
            numbers that order a user's events.
        items: columns of ``ITEM_FEATURES``, one row an item. May name items that nobody interacted with, and lack some.
        malformed: rows that were left out while reading.
    """

    name: str
    interactions: datasets.Dataset
    items: datasets.Dataset
    malformed: MalformedReport

    @classmethod
    def from_tables(
        cls,
        name: str,
        *,
        interactions: Iterable[pl.DataFrame],
        items: Iterable[pl.DataFrame],
        malformed: MalformedReport | None = None,
    ) -> "InteractionLog":
        """Build a log from pieces of two tables that hold at least the columns of the features; others are left out."""
        return cls(
            name=name,
            interactions=_dataset(interactions, INTERACTIONS, INTERACTION_FEATURES),
            items=_dataset(items, ITEMS, ITEM_FEATURES),
            malformed=malformed or MalformedReport(),
        )


def _dataset(
    pieces: Iterable[pl.DataFrame], schema: dict[str, pl.DataType], features: datasets.Features
) -> datasets.Dataset:
    table = pl.concat([pl.DataFrame(schema=schema), *(piece.select(list(schema)) for piece in pieces)])
    return datasets.Dataset.from_polars(table, features=features)
