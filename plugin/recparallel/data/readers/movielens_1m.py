"""MovieLens-1M: ``ratings.dat`` and ``movies.dat`` as GroupLens publishes them (format: the README in the archive)."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Number, Text, Time
from recparallel.data.delimited import read_delimited
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader


class MovieLens1M(Reader):
    """Read ``ratings.dat`` (``user::item::rating::timestamp``) and ``movies.dat`` (``item::title::genres``)."""

    name = "movielens-1m"
    files = ("ratings.dat", "movies.dat")
    source = "the archive ml-1m.zip at https://grouplens.org/datasets/movielens/1m/"

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        return read_delimited(
            folder / "ratings.dat",
            separator="::",
            columns={"user": Text(True), "item": Text(True), "rating": Number(), "timestamp": Time("s")},
            encoding="latin-1",
            tally=tally,
        )

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        return read_movies(folder / "movies.dat", tally)


def read_movies(path: Path, tally: Tally) -> Iterator[pl.DataFrame]:
    """Read a ``movies.dat``.

    Yields:
        Columns ``item``, ``title`` (string) and ``genres`` (list of string) in file order.

    Raises:
        DataError: the file is empty, or too many rows are malformed.
    """
    for table in read_delimited(
        path,
        separator="::",
        columns={"item": Text(True), "title": Text(), "genres": Text()},
        unique="item",
        encoding="latin-1",
        tally=tally,
    ):
        yield table.select("item", "title", split_genres(pl.col("genres"), "|"))


def split_genres(text: pl.Expr, separator: str) -> pl.Expr:
    """A list of names, from text that has them with a separator between."""
    return text.str.split(separator).list.eval(pl.element().str.strip_chars().filter(pl.element() != ""))
