"""Read delimited text with Polars, a whole column at a time, and say which lines could not be read and why.

Separators may have several characters (``::``), fields are never quoted: that is what public interaction logs look
like, and what CSV parsers do not read.
"""

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from recparallel.data.malformed import NUM_KEPT, MalformedReport, MalformedRow
from recparallel.errors import DataError

Encoding = Literal["latin-1", "utf-8"]

_MAX_TEXT = 80


def read_lines(path: Path, *, encoding: Encoding) -> pl.DataFrame:
    """Read a text file as a table of lines.

    Returns:
        Columns ``line`` (int64, 1-based), ``text`` (string, without the line end) and ``reason`` (string; null where
        the line is well-formed so far). Blank lines at the end of the file are no rows.

    Raises:
        DataError: the file holds nothing but blank lines.
    """
    texts, reasons = _decode(path.read_bytes().removeprefix(codecs.BOM_UTF8), encoding)
    table = pl.DataFrame(
        {"text": texts, "reason": reasons}, schema={"text": pl.String, "reason": pl.String}
    ).with_row_index("line", offset=1)
    table = table.with_columns(pl.col("line").cast(pl.Int64), pl.col("text").str.strip_suffix("\r"))
    last = table.filter(pl.col("text").str.strip_chars() != "")["line"].max()
    if last is None:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    return table.filter(pl.col("line") <= last)


def drop_malformed(table: pl.DataFrame, *, path: Path, max_malformed: float) -> tuple[pl.DataFrame, MalformedReport]:
    """Part the rows with a ``reason`` from those without.

    Args:
        table: columns ``line``, ``text`` and ``reason`` as :func:`read_lines` gives them, and any others.
        path: the file, for messages.
        max_malformed: share of the rows that may be malformed, see :meth:`MalformedReport.check`.

    Returns:
        The well-formed rows, and the report about the others.

    Raises:
        DataError: too many rows are malformed.
    """
    bad = table.filter(pl.col("reason").is_not_null())
    rows = bad.head(NUM_KEPT).select("line", "reason", "text").iter_rows()
    report = MalformedReport(
        num_rows=table.height,
        num_malformed=bad.height,
        first=tuple(MalformedRow(path, line, reason, _shorten(text)) for line, reason, text in rows),
    )
    report.check(path=path, max_malformed=max_malformed)
    return table.filter(pl.col("reason").is_null()), report


def read_delimited(
    path: Path,
    *,
    separator: str,
    columns: Sequence[str],
    numbers: Mapping[str, Any],
    required: Sequence[str] = (),
    unique: str | None = None,
    encoding: Encoding,
    max_malformed: float,
) -> tuple[pl.DataFrame, MalformedReport]:
    """Read a text file of delimited fields, one row a line, without a header.

    A row is malformed if its bytes do not decode, if it has another number of fields than ``columns``, if a number
    cannot be read (or is not finite), if a required field is empty, or if its ``unique`` field was on an earlier
    well-formed line.

    Args:
        path: the file.
        separator: one or several characters.
        columns: a name for each field, in order.
        numbers: Polars type of each column that is not text.
        required: text columns that must not be empty.
        unique: column whose values may occur only once; the first row wins.
        encoding: of the file.
        max_malformed: share of the rows that may be malformed, see :meth:`MalformedReport.check`.

    Returns:
        The well-formed rows in file order with ``columns`` and ``line`` (int64, 1-based), and the report about the
        others.

    Raises:
        DataError: the file is empty, or too many rows are malformed.
    """
    table = read_lines(path, encoding=encoding)
    num_fields = pl.col("text").str.count_matches(separator, literal=True) + 1
    fields = pl.col("text").str.split_exact(separator, len(columns) - 1).struct.rename_fields(list(columns))
    table = table.with_columns(fields.alias("fields"), num_fields.alias("num_fields")).unnest("fields")

    values = {name: _number(name, dtype) for name, dtype in numbers.items()}
    reasons = [
        pl.when(pl.col("num_fields") != len(columns)).then(
            pl.format(f"expected {len(columns)} fields, found {{}}", pl.col("num_fields"))
        ),
        *(
            pl.when(value.is_null()).then(pl.format(f"{name} '{{}}' is not a number ({numbers[name]})", pl.col(name)))
            for name, value in values.items()
        ),
        *(pl.when(pl.col(name).str.strip_chars() == "").then(pl.lit(f"{name} is empty")) for name in required),
    ]
    table = table.with_columns(pl.coalesce("reason", *reasons).alias("reason"))
    if unique is not None:
        repeated = pl.when(
            pl.col("reason").is_null() & ~pl.col(unique).is_first_distinct().over(pl.col("reason").is_null())
        )
        table = table.with_columns(
            pl.coalesce("reason", repeated.then(pl.format(f"{unique} '{{}}' is on an earlier line", pl.col(unique))))
        )
    table, report = drop_malformed(table, path=path, max_malformed=max_malformed)
    return table.with_columns(**values).select("line", *columns), report


def _number(name: str, dtype: Any) -> pl.Expr:
    value = pl.col(name).cast(dtype, strict=False)
    if dtype in (pl.Float32, pl.Float64):
        return pl.when(value.is_finite()).then(value)
    return value


def _decode(raw: bytes, encoding: Encoding) -> tuple[list[str], list[str | None]]:
    """The lines of ``raw``, and for each what does not decode (None: nothing)."""
    # str.splitlines() would also cut at latin-1's 0x85, which is a character of a title.
    try:
        texts = raw.decode(encoding).split("\n")
    except UnicodeDecodeError:
        decoded = [_decode_line(line, encoding) for line in raw.split(b"\n")]
        return [text for text, _ in decoded], [reason for _, reason in decoded]
    return texts, [None] * len(texts)


def _decode_line(line: bytes, encoding: Encoding) -> tuple[str, str | None]:
    try:
        return line.decode(encoding), None
    except UnicodeDecodeError as error:
        reason = f"byte 0x{line[error.start]:02x} at column {error.start + 1} is not {encoding}"
        return line.decode(encoding, errors="backslashreplace"), reason


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
