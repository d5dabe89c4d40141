"""MovieLens-1M: ``ratings.dat`` and ``movies.dat`` as GroupLens publishes them (format: the README in the archive)."""

from pathlib import Path

import polars as pl

from recparallel.data.delimited import read_delimited
from recparallel.data.log import InteractionLog
from recparallel.data.malformed import MalformedReport
from recparallel.data.readers import Reader


class MovieLens1M(Reader):
    """Read ``ratings.dat`` (``user::item::rating::timestamp``) and ``movies.dat`` (``item::title::genres``)."""

    name = "movielens-1m"
    files = ("ratings.dat", "movies.dat")
    source = "the archive ml-1m.zip at https://grouplens.org/datasets/movielens/1m/"

    def parse(self, folder: Path, *, max_malformed: float) -> InteractionLog:
        interactions, malformed = read_delimited(
            folder / "ratings.dat",
            separator="::",
            columns=("user", "item", "rating", "timestamp"),
            numbers={"rating": pl.Float32, "timestamp": pl.Int64},
            required=("user", "item"),
            encoding="latin-1",
            max_malformed=max_malformed,
        )
        items, items_malformed = read_movies(folder / "movies.dat", max_malformed=max_malformed)
        return InteractionLog.from_tables(
            self.name, interactions=interactions, items=items, malformed=malformed + items_malformed
        )


def read_movies(path: Path, *, max_malformed: float) -> tuple[pl.DataFrame, MalformedReport]:
    """Read a ``movies.dat``.

    Returns:
        Columns ``item``, ``title`` (string) and ``genres`` (list of string) in file order, and the report about
        malformed rows.

    Raises:
        DataError: the file is empty, or too many rows are malformed.
    """
    table, malformed = read_delimited(
        path,
        separator="::",
        columns=("item", "title", "genres"),
        numbers={},
        required=("item",),
        unique="item",
        encoding="latin-1",
        max_malformed=max_malformed,
    )
    genres = pl.col("genres").str.split("|").list.eval(pl.element().filter(pl.element() != ""))
    return table.select("item", "title", genres), malformed
