"""MovieLens-100K: ``u.data`` and ``u.item`` as GroupLens publishes them (format: the README in the archive)."""

from pathlib import Path

import polars as pl

from recparallel.data.delimited import read_delimited
from recparallel.data.log import InteractionLog
from recparallel.data.malformed import MalformedReport
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
    source = "the archive ml-100k.zip at https://grouplens.org/datasets/movielens/100k/"

    def parse(self, folder: Path, *, max_malformed: float) -> InteractionLog:
        interactions, malformed = read_delimited(
            folder / "u.data",
            separator="\t",
            columns=("user", "item", "rating", "timestamp"),
            numbers={"rating": pl.Float32, "timestamp": pl.Int64},
            required=("user", "item"),
            encoding="latin-1",
            max_malformed=max_malformed,
        )
        genres, genres_malformed = _read_genres(folder / "u.genre", max_malformed=max_malformed)
        flags = [f"flag_{i}" for i in range(len(genres))]
        items, items_malformed = read_delimited(
            folder / "u.item",
            separator="|",
            columns=("item", "title", "release_date", "video_release_date", "url", *flags),
            numbers=dict.fromkeys(flags, pl.Int64),
            required=("item",),
            unique="item",
            encoding="latin-1",
            max_malformed=max_malformed,
        )
        named = [pl.when(pl.col(flag) == 1).then(pl.lit(genre)) for flag, genre in zip(flags, genres)]
        return InteractionLog.from_tables(
            self.name,
            interactions=interactions,
            items=items.with_columns(genres=pl.concat_list(named).list.drop_nulls()),
            malformed=malformed + genres_malformed + items_malformed,
        )


def _read_genres(path: Path, *, max_malformed: float) -> tuple[tuple[str, ...], MalformedReport]:
    if not path.is_file():
        return GENRES, MalformedReport()
    table, malformed = read_delimited(
        path,
        separator="|",
        columns=("genre", "index"),
        numbers={"index": pl.Int64},
        required=("genre",),
        encoding="latin-1",
        max_malformed=max_malformed,
    )
    table = table.sort("index")
    if table["index"].to_list() != list(range(table.height)):
        raise DataError(
            f"{path}: the genres must be numbered 0 to {table.height - 1} without gaps, got {table['index'].to_list()}"
        )
    return tuple(table["genre"]), malformed
