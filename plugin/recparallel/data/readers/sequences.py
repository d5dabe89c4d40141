"""Plain sequences: one user a line, items in time order; the form in which sequential recommenders exchange logs."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.delimited import complain_of_repeated
from recparallel.data.lines import read_lines
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.data.readers.movielens_1m import read_movies


class Sequences(Reader):
    """Read ``sequences.txt`` (UTF-8): ``user item item …`` with spaces or tabs between, one user a line.

    A timestamp is the position in the user's sequence, from 0; the rating, which the format does not have, is 1.0
    everywhere. Titles and genres come from a ``movies.dat`` in the same folder (MovieLens-1M's format) if there is one.
    """

    name = "sequences"
    files = ("sequences.txt",)
    optional_files = ("movies.dat",)
    timed = False
    source = "write it yourself: one user a line, 'user item item …', items in the order of time"

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        path = folder / "sequences.txt"
        words = (
            pl.col("text")
            .str.replace_all("\t", " ", literal=True)
            .str.split(" ")
            .list.eval(pl.element().filter(pl.element() != ""))
        )
        known = pl.Series(dtype=pl.String)
        for table in read_lines(path, encoding="utf-8"):
            table = table.with_columns(words=words)
            table = table.with_columns(user=pl.col("words").list.first(), items=pl.col("words").list.slice(1))
            found = pl.col("words").list.len()
            short = pl.when(found < 2).then(pl.format("expected a user and at least one item, found {} fields", found))
            table = table.with_columns(reason=pl.coalesce("reason", short))
            # Two lines of one user would have to be merged, but nothing says in which order.
            table, known = complain_of_repeated(table, "user", known)
            table = tally.keep(table, path).with_columns(timestamp=pl.int_ranges(0, pl.col("items").list.len()))
            table = table.select("user", item="items", timestamp="timestamp").explode("item", "timestamp")
            yield table.with_columns(rating=pl.lit(1.0, dtype=pl.Float32))
        tally.finish(path)

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        movies = folder / "movies.dat"
        return read_movies(movies, tally) if movies.is_file() else iter(())
