"""Read tables that already have columns, typed or not, as text files are read: what a field has to be, row by row."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from recparallel.data.columns import Column, Time, convert
from recparallel.data.delimited import complain_of_repeated
from recparallel.data.malformed import Tally
from recparallel.errors import DataError


def read_tables(
    tables: Iterable[pl.DataFrame],
    *,
    path: Path,
    header: Mapping[str, str],
    columns: Mapping[str, Column],
    tally: Tally,
    unique: str | None = None,
) -> Iterator[pl.DataFrame]:
    """Read the pieces of a table.

    Args:
        tables: pieces, in order, that hold the columns of ``header``; dates among them need no unit.
        path: where they come from, for messages.
        header: the column of each name here.
        columns: what each has to be.
        tally: counts malformed rows.
        unique: name of a column whose values may occur only once; the first row wins.

    Yields:
        The well-formed rows with ``columns`` and ``line`` (int64, the number of the row from 1).

    Raises:
        DataError: there is no row, or too many are malformed.
    """
    known = pl.Series(dtype=pl.String)
    first = 1
    for table in tables:
        # A column may be wanted under two names, and be of a name that means something else here.
        given = pl.DataFrame({name: table[there] for name, there in header.items()})
        kinds = {
            name: _without_unit(column) if given[name].dtype in (pl.Date, pl.Datetime) else column
            for name, column in columns.items()
        }
        _check_types(given, header, path)
        text = given.select(_as_text(given[name]) for name in header)
        text = text.with_columns(
            text=pl.concat_str(pl.all().fill_null(""), separator="\t"), reason=pl.lit(None, dtype=pl.String)
        )
        rows = convert(text.with_row_index("line", offset=first).with_columns(pl.col("line").cast(pl.Int64)), kinds)
        if unique is not None:
            rows, known = complain_of_repeated(rows, unique, known)
        first += table.height
        yield tally.keep(rows, path).select("line", *header)
    tally.finish(path)


def _check_types(given: pl.DataFrame, header: Mapping[str, str], path: Path) -> None:
    for name, dtype in given.schema.items():
        if (
            dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Datetime, pl.Null)
            and not dtype.is_numeric()
        ):
            raise DataError(
                f"{path}: column {header[name]!r} is of type {dtype}; allowed are text, numbers, booleans, dates"
            )


def _without_unit(column: Column) -> Column:
    return replace(column, unit=None, format=None) if isinstance(column, Time) else column


def _as_text(values: pl.Series) -> pl.Series:
    if values.dtype in (pl.Date, pl.Datetime):
        values = values.cast(pl.Datetime("ms")).cast(pl.Int64)
    return values.cast(pl.String)
