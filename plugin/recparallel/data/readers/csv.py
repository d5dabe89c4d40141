"""Any CSV file with a header, by the names of its columns."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from recparallel.data.columns import Column
from recparallel.data.delimited import read_delimited
from recparallel.data.malformed import Tally
from recparallel.data.readers.tabular import FILE_OPTIONS, Tabular
from recparallel.errors import ConfigError

_ENCODINGS = ("utf-8", "latin-1")


class Csv(Tabular):
    """Read files whose first line names the columns, quoted as in RFC 4180; a record is one line."""

    name = "csv"
    files = ("*.csv",)
    default_files = "*.csv"
    source = "your own, with a header"
    options: ClassVar[Mapping[str, str]] = {
        **FILE_OPTIONS,
        "separator": "one character, a comma if not given",
        "encoding": " or ".join(_ENCODINGS),
    }

    def __init__(self, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(seed=seed, options=options)
        self.separator = self.given.get("separator", ",").replace("\\t", "\t")
        self.encoding = self.given.get("encoding", "utf-8")
        if len(self.separator) != 1:
            raise ConfigError(f"option separator={self.separator!r} must be one character")
        if self.encoding not in _ENCODINGS:
            raise ConfigError(f"option encoding={self.encoding!r}; allowed are {' and '.join(_ENCODINGS)}")

    def read(
        self,
        path: Path,
        header: Mapping[str, str],
        columns: Mapping[str, Column],
        tally: Tally,
        unique: str | None = None,
    ) -> Iterator[pl.DataFrame]:
        return read_delimited(
            path,
            separator=self.separator,
            header=header,
            columns=columns,
            quoted=True,
            unique=unique,
            encoding=self.encoding,  # type: ignore[arg-type]
            tally=tally,
        )
