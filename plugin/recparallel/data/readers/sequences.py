"""Plain sequences: one user a line, items in time order; the form in which sequential recommenders exchange logs."""

from pathlib import Path
from typing import Any

import polars as pl

from recparallel.data.delimited import drop_malformed, read_lines
from recparallel.data.log import InteractionLog
from recparallel.data.malformed import MalformedReport
from recparallel.data.readers import Reader
from recparallel.data.readers.movielens_1m import read_movies


class Sequences(Reader):
    """Read ``sequences.txt`` (UTF-8): ``user item item …`` with spaces or tabs between, one user a line.

    A timestamp is the position in the user's sequence, from 0; the rating, which the format does not have, is 1.0
    everywhere. Titles and genres come from a ``movies.dat`` in the same folder (MovieLens-1M's format) if there is
    one; else, and for items that it does not name, the title is the item's id and there are no genres.
    """

    name = "sequences"
    files = ("sequences.txt",)
    source = "write it yourself: one user a line, 'user item item …', items in the order of time"

    def parse(self, folder: Path, *, max_malformed: float) -> InteractionLog:
        interactions, malformed = _read_sequences(folder / "sequences.txt", max_malformed=max_malformed)
        items = interactions.select("item").unique(maintain_order=True)
        movies = folder / "movies.dat"
        if movies.is_file():
            titled, movies_malformed = read_movies(movies, max_malformed=max_malformed)
            malformed += movies_malformed
            untitled = items.filter(~pl.col("item").is_in(titled["item"].to_list()))
        else:
            titled, untitled = pl.DataFrame(schema=_ITEM_SCHEMA), items
        untitled = untitled.with_columns(title=pl.col("item"), genres=pl.lit([], dtype=pl.List(pl.String)))
        return InteractionLog.from_tables(
            self.name, interactions=interactions, items=pl.concat([titled, untitled]), malformed=malformed
        )


_ITEM_SCHEMA: dict[str, Any] = {"item": pl.String, "title": pl.String, "genres": pl.List(pl.String)}


def _read_sequences(path: Path, *, max_malformed: float) -> tuple[pl.DataFrame, MalformedReport]:
    words = (
        pl.col("text")
        .str.replace_all("\t", " ", literal=True)
        .str.split(" ")
        .list.eval(pl.element().filter(pl.element() != ""))
    )
    table = read_lines(path, encoding="utf-8").with_columns(words=words)
    table = table.with_columns(user=pl.col("words").list.first(), items=pl.col("words").list.slice(1))
    short = pl.when(pl.col("words").list.len() < 2).then(
        pl.format("expected a user and at least one item, found {} fields", pl.col("words").list.len())
    )
    table = table.with_columns(pl.coalesce("reason", short))
    # Two lines of one user would have to be merged, but nothing says in which order.
    well_formed = pl.col("reason").is_null()
    repeated = pl.when(well_formed & ~pl.col("user").is_first_distinct().over(well_formed)).then(
        pl.format("user '{}' is on an earlier line", pl.col("user"))
    )
    table = table.with_columns(pl.coalesce("reason", repeated))
    table, malformed = drop_malformed(table, path=path, max_malformed=max_malformed)
    table = table.with_columns(timestamp=pl.int_ranges(0, pl.col("items").list.len()))
    table = table.select("user", item="items", timestamp="timestamp").explode("item", "timestamp")
    return table.with_columns(rating=pl.lit(1.0, dtype=pl.Float32)), malformed
