"""Read delimited text with Polars, a piece of a file at a time, and say which lines could not be read and why.

Separators may have several characters (``::``), which CSV parsers do not read. A record is one line.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from recparallel.data.columns import Column, convert
from recparallel.data.lines import PIECE_BYTES, Encoding, first_line, read_lines
from recparallel.data.malformed import Tally
from recparallel.errors import DataError

_QUOTE = '"'


def read_delimited(
    path: Path,
    *,
    separator: str,
    columns: Mapping[str, Column],
    tally: Tally,
    header: Mapping[str, str] | None = None,
    quoted: bool = False,
    unique: str | None = None,
    encoding: Encoding = "utf-8",
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[pl.DataFrame]:
    """Read a text file of delimited fields, one record a line.

    A row is malformed if its bytes do not decode, if it has another number of fields than the first line (without a
    header: than ``columns``), if a field is not what its column says, if a quotation is not closed on its line, or if its
    ``unique`` field was on an earlier well-formed line.

    Args:
        path: the file.
        separator: one or several characters; one where ``quoted``.
        columns: what each field has to be, by its name here. Without a header, all fields in order.
        tally: counts malformed rows.
        header: the file's first line names its fields; this maps names here to those of the file. Others are not read.
        quoted: a field may stand between quotation marks, doubled ones inside it for one (RFC 4180).
        unique: column whose values may occur only once; the first row wins.
        encoding: of the file.
        piece_bytes: see :func:`~recparallel.data.lines.read_lines`.

    Yields:
        The well-formed rows in file order with ``columns`` and ``line`` (int64, 1-based).

    Raises:
        DataError: the file is empty, has no such column, or too many rows are malformed.
    """
    names = list(columns)
    positions = list(range(len(names)))
    num_fields = len(names)
    if header is not None:
        there = _split_quoted(first_line(path, encoding=encoding), separator) or []
        positions = positions_of([header[name] for name in names], there, path=path, separator=separator)
        num_fields = len(there)
    known = pl.Series(dtype=pl.String)
    for table in read_lines(path, encoding=encoding, piece_bytes=piece_bytes):
        if header is not None:
            table = table.filter(pl.col("line") > 1)
        table = _split(table, separator, num_fields, quoted=quoted)
        fields = {name: pl.col("fields").list.get(at, null_on_oob=True) for name, at in zip(names, positions)}
        table = convert(table.with_columns(**fields), columns)
        if unique is not None:
            table, known = complain_of_repeated(table, unique, known)
        yield tally.keep(table, path).select("line", *names)
    tally.finish(path)


def positions_of(wanted: Sequence[str], there: Sequence[str], *, path: Path, separator: str | None = None) -> list[int]:
    """Where the columns of these names are.

    Raises:
        DataError: one is missing; the message has those that are there.
    """
    missing = [name for name in wanted if name not in there]
    if missing:
        hint = (
            f"; is the separator another one than {separator!r}?" if separator is not None and len(there) == 1 else ""
        )
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))}; the file has {', '.join(map(repr, there))}{hint}"
        )
    return [list(there).index(name) for name in wanted]


def complain_of_repeated(table: pl.DataFrame, unique: str, known: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """Give rows a ``reason`` whose value was on an earlier well-formed one.

    Args:
        table: with ``reason``.
        unique: the column.
        known: values of earlier pieces.

    Returns:
        The table, and the values known now.
    """
    good = pl.col("reason").is_null()
    repeated = good & (~pl.col(unique).is_first_distinct().over(good) | pl.col(unique).is_in(known.implode()))
    again = pl.when(repeated).then(pl.format(f"{unique} '{{}}' is on an earlier line", pl.col(unique)))
    table = table.with_columns(reason=pl.coalesce("reason", again))
    return table, pl.concat([known, table.filter(good)[unique]])


def _split(table: pl.DataFrame, separator: str, num_fields: int, *, quoted: bool) -> pl.DataFrame:
    """Add ``fields``, and to ``reason`` where a line has another number of them."""
    if quoted and bool(table["text"].str.contains(_QUOTE, literal=True).any()):
        parts = [_split_quoted(text, separator) if _QUOTE in text else text.split(separator) for text in table["text"]]
        table = table.with_columns(fields=pl.Series(parts, dtype=pl.List(pl.String)))
    else:
        table = table.with_columns(fields=pl.col("text").str.split(separator))
    unclosed = pl.when(pl.col("fields").is_null()).then(pl.lit("quotation marks do not go together on this line"))
    found = pl.col("fields").list.len()
    other = pl.when(found != num_fields).then(pl.format(f"expected {num_fields} fields, found {{}}", found))
    return table.with_columns(reason=pl.coalesce("reason", unclosed, other))


def _split_quoted(text: str, separator: str) -> list[str] | None:
    """The fields of a line; None where a quotation is not closed."""
    if len(separator) > 1 or _QUOTE not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return None
