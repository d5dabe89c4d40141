"""MovieLens-20M, 25M and 32M: ``ratings.csv`` and ``movies.csv`` as GroupLens publishes them since 2015."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Number, Text, Time
from recparallel.data.delimited import read_delimited
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.data.readers.movielens_1m import split_genres


class MovieLens32M(Reader):
    """Read ``ratings.csv`` (``userId,movieId,rating,timestamp``) and ``movies.csv`` (``movieId,title,genres``; titles with a
    comma stand between quotation marks)."""

    name = "movielens-32m"
    files = ("ratings.csv", "movies.csv")
    source = "the archive ml-32m.zip at https://grouplens.org/datasets/movielens/32m/"

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        return read_delimited(
            folder / "ratings.csv",
            separator=",",
            header={"user": "userId", "item": "movieId", "rating": "rating", "timestamp": "timestamp"},
            columns={"user": Text(True), "item": Text(True), "rating": Number(), "timestamp": Time("s")},
            quoted=True,
            tally=tally,
        )

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for table in read_delimited(
            folder / "movies.csv",
            separator=",",
            header={"item": "movieId", "title": "title", "genres": "genres"},
            columns={"item": Text(True), "title": Text(), "genres": Text()},
            quoted=True,
            unique="item",
            tally=tally,
        ):
            genres = split_genres(pl.col("genres").replace("(no genres listed)", ""), "|")
            yield table.select("item", "title", genres)


class MovieLens20M(MovieLens32M):
    """The same files of the release of 2015."""

    name = "movielens-20m"
    source = "the archive ml-20m.zip at https://grouplens.org/datasets/movielens/20m/"


class MovieLens25M(MovieLens32M):
    """The same files of the release of 2019."""

    name = "movielens-25m"
    source = "the archive ml-25m.zip at https://grouplens.org/datasets/movielens/25m/"
