"""What a reader returns: who did what and when, and what the items are called. The same columns whatever the source."""

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


@dataclass(frozen=True)
class InteractionLog:
    """One log of interactions, in memory.

    Args:
        name: the dataset's name, as in the registry.
        interactions: columns of ``INTERACTION_FEATURES``, in file order; timestamps in seconds or whatever unit orders
            them.
        items: columns of ``ITEM_FEATURES``, one row an item. May name items that nobody interacted with.
        malformed: rows that were left out while reading.
    """

    name: str
    interactions: datasets.Dataset
    items: datasets.Dataset
    malformed: MalformedReport

    @classmethod
    def from_tables(
        cls, name: str, *, interactions: pl.DataFrame, items: pl.DataFrame, malformed: MalformedReport
    ) -> "InteractionLog":
        """Build a log from two tables that hold at least the columns of the features; other columns are left out."""
        return cls(
            name=name,
            interactions=datasets.Dataset.from_polars(
                interactions.select(list(INTERACTION_FEATURES)), features=INTERACTION_FEATURES
            ),
            items=datasets.Dataset.from_polars(items.select(list(ITEM_FEATURES)), features=ITEM_FEATURES),
            malformed=malformed,
        )
