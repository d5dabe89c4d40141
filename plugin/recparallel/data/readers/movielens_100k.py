"""MovieLens-100K: ``u.data`` and ``u.item`` as GroupLens publishes them (format: the README in the archive)."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Number, Text, Time
from recparallel.data.delimited import read_delimited
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.errors import DataError

GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""The flags of ``u.item``, in order, where no ``u.genre`` says otherwise."""


class MovieLens100K(Reader):
    """Read ``u.data`` (tab-separated ``user item rating timestamp``) and ``u.item`` (``|``-separated, latin-1, genre
    flags).

    ``u.genre`` names the flags if it is there; otherwise they are the 19 genres that the dataset's README documents.
    """

    name = "movielens-100k"
    files = ("u.data", "u.item")
    optional_files = ("u.genre",)
    source = "the archive ml-100k.zip at https://grouplens.org/datasets/movielens/100k/"

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        return read_delimited(
            folder / "u.data",
            separator="\t",
            columns={"user": Text(True), "item": Text(True), "rating": Number(), "timestamp": Time("s")},
            encoding="latin-1",
            tally=tally,
        )

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        genres = _read_genres(folder / "u.genre", tally)
        flags = {f"flag_{i}": Number(pl.Int64()) for i in range(len(genres))}
        dates = {"release_date": Text(), "video_release_date": Text(), "url": Text()}
        named = [pl.when(pl.col(flag) == 1).then(pl.lit(genre)) for flag, genre in zip(flags, genres)]
        for table in read_delimited(
            folder / "u.item",
            separator="|",
            columns={"item": Text(True), "title": Text(), **dates, **flags},
            unique="item",
            encoding="latin-1",
            tally=tally,
        ):
            yield table.select("item", "title", pl.concat_list(named).list.drop_nulls().alias("genres"))


def _read_genres(path: Path, tally: Tally) -> tuple[str, ...]:
    if not path.is_file():
        return GENRES
    table = pl.concat(
        read_delimited(
            path,
            separator="|",
            columns={"genre": Text(True), "index": Number(pl.Int64())},
            encoding="latin-1",
            tally=tally,
        )
    ).sort("index")
    if table["index"].to_list() != list(range(table.height)):
        raise DataError(
            f"{path}: the genres must be numbered 0 to {table.height - 1} without gaps, got {table['index'].to_list()}"
        )
    return tuple(table["genre"])
