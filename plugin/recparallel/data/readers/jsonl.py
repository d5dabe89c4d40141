"""Any file of JSON objects, one a line, by their keys."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from recparallel.data.columns import Column
from recparallel.data.malformed import Tally
from recparallel.data.readers.tabular import Tabular
from recparallel.data.records import read_records


class Jsonl(Tabular):
    """Read files of JSON objects, one a line, compressed by gzip or not."""

    name = "jsonl"
    files = ("*.jsonl*",)
    default_files = "*.jsonl*"
    source = "your own, an object a line"

    def read(
        self,
        path: Path,
        header: Mapping[str, str],
        columns: Mapping[str, Column],
        tally: Tally,
        unique: str | None = None,
    ) -> Iterator[pl.DataFrame]:
        return read_records(path, fields=header, columns=columns, unique=unique, tally=tally)
