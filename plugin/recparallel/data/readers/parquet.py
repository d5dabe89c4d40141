"""Any Parquet file, by the names of its columns."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
import pyarrow
import pyarrow.parquet

from recparallel.data.columns import Column
from recparallel.data.delimited import positions_of
from recparallel.data.malformed import Tally
from recparallel.data.readers.tabular import Tabular
from recparallel.data.tables import read_tables
from recparallel.errors import DataError

_ROWS = 500_000


class Parquet(Tabular):
    """Read Parquet files, a group of rows at a time. A column of dates needs no unit."""

    name = "parquet"
    files = ("*.parquet",)
    default_files = "*.parquet"
    source = "your own"

    def read(
        self,
        path: Path,
        header: Mapping[str, str],
        columns: Mapping[str, Column],
        tally: Tally,
        unique: str | None = None,
    ) -> Iterator[pl.DataFrame]:
        try:
            file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{path}: not a Parquet file: {error}") from error
        with file:
            positions_of(list(header.values()), file.schema_arrow.names, path=path)
            batches = file.iter_batches(_ROWS, columns=list(dict.fromkeys(header.values())))
            tables = (pl.DataFrame(pl.from_arrow(batch)) for batch in batches)
            yield from read_tables(tables, path=path, header=header, columns=columns, unique=unique, tally=tally)
