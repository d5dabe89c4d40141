"""What the readers of columns by name share: CSV, JSON lines, Parquet, and datasets of the hub."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import polars as pl

from recparallel.data.columns import Column, Number, Text, Time, Unit
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.data.readers.movielens_1m import split_genres
from recparallel.errors import ConfigError

COLUMN_OPTIONS = {
    "user": "column of users, 'user' if not given",
    "item": "column of items, 'item' if not given",
    "timestamp": "column of times, 'timestamp' if not given; 'none': rows are in the order of time",
    "timestamp_unit": f"{', '.join(get_args(Unit))} since 1970, order, or a form of dates such as %Y-%m-%d; s if not given",
    "rating": "column of ratings or labels; not given, all are 1",
}

FILE_OPTIONS = {
    "files": "pattern of the log's files, which are read in the order of their names",
    **COLUMN_OPTIONS,
    "items_file": "file that names the items, by the same column",
    "title": "its column of titles, 'title' if not given",
    "genres": "its column of genres, with | between",
}


class Tabular(Reader):
    """A log in columns that the user names. Required: ``read``, and ``default_files``.

    Raises:
        ConfigError: an option is unknown, or a unit of time is none.
    """

    default_files: ClassVar[str]
    """The pattern of files where the user gives none."""

    options: ClassVar[Mapping[str, str]] = FILE_OPTIONS

    def __init__(self, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(seed=seed, options=options)
        self.files = (self.given.get("files", self.default_files),)
        if "items_file" in self.given:
            self.files = (*self.files, self.given["items_file"])
        elif lost := [name for name in ("title", "genres") if name in self.given]:
            raise ConfigError(f"options {' and '.join(lost)} name columns of items_file, which is not given")
        for pattern in self.files:
            if pattern != self.default_files and (not pattern or Path(pattern).is_absolute()):
                raise ConfigError(f"options files and items_file are patterns within data_dir, got {pattern!r}")
        unit = self.given.get("timestamp_unit", "s")
        self.timed = unit != "order" and self.given.get("timestamp") != "none"
        if unit not in (*get_args(Unit), "order") and "%" not in unit:
            raise ConfigError(
                f"option timestamp_unit={unit!r}; allowed are {', '.join(get_args(Unit))}, order, and a form of dates such "
                "as %Y-%m-%d"
            )

    @abstractmethod
    def read(
        self,
        path: Path,
        header: Mapping[str, str],
        columns: Mapping[str, Column],
        tally: Tally,
        unique: str | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Read one file.

        Args:
            path: the file.
            header: its column for each name here.
            columns: what it has to be.
            tally: counts malformed rows.
            unique: name of a column whose values may occur only once; the first row wins.

        Yields:
            The columns by their names here, and ``line`` (int64).
        """

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        header, columns = self.wanted()
        of_items = {path for pattern in self.files[1:] for path in self.matching(folder, pattern)}
        paths = [path for path in self.matching(folder, self.files[0]) if path not in of_items]
        for number, path in enumerate(paths):
            for table in self.read(path, header, columns, tally):
                yield self.completed(table, number)

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        header = {"item": self.given.get("item", "item"), "title": self.given.get("title", "title")}
        columns: dict[str, Column] = {"item": Text(True), "title": Text()}
        if "genres" in self.given:
            header["genres"], columns["genres"] = self.given["genres"], Text()
        for pattern in self.files[1:]:
            for path in self.matching(folder, pattern):
                for table in self.read(path, header, columns, tally, unique="item"):
                    none = pl.lit([], dtype=pl.List(pl.String)).alias("genres")
                    genres = split_genres(pl.col("genres"), "|") if "genres" in columns else none
                    yield table.select("item", "title", genres)

    def wanted(self) -> tuple[dict[str, str], dict[str, Column]]:
        """The log's columns: their names in the file, and what they have to be."""
        header = {name: self.given.get(name, name) for name in ("user", "item", "timestamp")}
        columns: dict[str, Column] = {"user": Text(True), "item": Text(True), "timestamp": self._time()}
        if header["timestamp"] == "none":
            del header["timestamp"], columns["timestamp"]
        if "rating" in self.given:
            header["rating"], columns["rating"] = self.given["rating"], Number()
        return header, columns

    def completed(self, table: pl.DataFrame, file: int) -> pl.DataFrame:
        """With the ratings and times that the log has not: 1, and the order of rows."""
        if "rating" not in table.columns:
            table = table.with_columns(rating=pl.lit(1.0, dtype=pl.Float32))
        if "timestamp" not in table.columns:
            table = table.with_columns(timestamp=pl.col("line") + (file << 40))
        return table

    def _time(self) -> Time:
        unit = self.given.get("timestamp_unit", "s")
        if "%" in unit:
            return Time(format=unit)
        return Time(None if unit == "order" else cast(Unit, unit))
