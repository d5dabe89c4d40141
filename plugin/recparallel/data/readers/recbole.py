"""RecBole's atomic files: tables whose first line says the name and the type of each column."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Column, Number, Text, Time
from recparallel.data.delimited import read_delimited
from recparallel.data.lines import first_line
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.data.readers.movielens_1m import split_genres
from recparallel.errors import DataError

_SEPARATOR = "\t"


class RecBole(Reader):
    """Read ``*.inter`` (``user_id:token``, ``item_id:token``, and ``rating:float`` and ``timestamp:float`` where they are
    there) and ``*.item`` where it is there: the first column of tokens that looks like a title, and like genres.

    A log without ratings has 1.0 everywhere, one without timestamps the order of its rows.
    """

    name = "recbole"
    files = ("*.inter",)
    optional_files = ("*.item",)
    source = "one dataset's atomic files, alone in a folder: https://recbole.io/dataset_list.html"

    def paths(self, folder: Path) -> list[Path]:
        found = super().paths(folder)
        logs = [path for path in found if path.suffix == ".inter"]
        self.timed = all("timestamp" in _columns(path) for path in logs)
        if len(logs) > 1 and not self.timed:
            raise DataError(
                f"{folder}: {', '.join(path.name for path in logs)} have no timestamps, or only some do: "
                "nothing says in which order a user's events are; leave one file there"
            )
        return found

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.files[0]):
            there = _columns(path)
            header = {"user": _named(there, "user_id", path=path), "item": _named(there, "item_id", path=path)}
            columns: dict[str, Column] = {"user": Text(True), "item": Text(True)}
            for name, column in (("rating", Number()), ("timestamp", Time("s"))):
                if name in there:
                    header[name], columns[name] = there[name], column
            for table in read_delimited(path, separator=_SEPARATOR, header=header, columns=columns, tally=tally):
                if "rating" not in columns:
                    table = table.with_columns(rating=pl.lit(1.0, dtype=pl.Float32))
                if "timestamp" not in columns:
                    table = table.with_columns(timestamp=pl.col("line"))
                yield table

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.optional_files[0]):
            there = _columns(path)
            title = next((name for name in there if "title" in name or "name" in name), None)
            genres = next((name for name in there if any(word in name for word in ("genre", "class", "categor"))), None)
            header = {"item": _named(there, "item_id", path=path)}
            columns: dict[str, Column] = {"item": Text(True)}
            for column, name in (("title", title), ("genres", genres)):
                if name is not None:
                    header[column], columns[column] = there[name], Text()
            for table in read_delimited(
                path, separator=_SEPARATOR, header=header, columns=columns, unique="item", tally=tally
            ):
                yield table.select(
                    "item",
                    pl.col("title" if title else "item").alias("title"),
                    split_genres(pl.col("genres"), " ")
                    if genres
                    else pl.lit([], dtype=pl.List(pl.String)).alias("genres"),
                )


def _columns(path: Path) -> dict[str, str]:
    """Names without types, to names as they stand in the file."""
    fields = first_line(path, encoding="utf-8").split(_SEPARATOR)
    return {field.partition(":")[0]: field for field in fields}


def _named(there: dict[str, str], name: str, *, path: Path) -> str:
    if name not in there:
        raise DataError(f"{path}: no column {name!r}; the file has {', '.join(map(repr, there))}")
    return there[name]
