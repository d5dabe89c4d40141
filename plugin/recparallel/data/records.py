"""Read records that stand one on a line: JSON objects, or the Python literals that some older dumps hold."""

import ast
import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from recparallel.data.columns import Column, convert
from recparallel.data.delimited import complain_of_repeated
from recparallel.data.lines import PIECE_BYTES, read_lines
from recparallel.data.malformed import Tally

Parse = Callable[[str], Any]

_SURROGATE = r"\\u[dD][89a-fA-F]"


def read_records(
    path: Path,
    *,
    fields: Mapping[str, str],
    columns: Mapping[str, Column],
    tally: Tally,
    lists: Mapping[str, str] | None = None,
    parse: Parse | None = None,
    unique: str | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[pl.DataFrame]:
    """Read a text file of objects, one a line (UTF-8).

    A row is malformed if it is no object, if a field is not what its column says, or if its ``unique`` field was on an
    earlier well-formed line. A key that an object lacks is a field that is left out.

    Args:
        path: the file; one that ends in ``.gz`` is unpacked while it is read.
        fields: the key of each column.
        columns: what each field has to be, by the same names.
        tally: counts malformed rows.
        lists: keys of further columns that hold lists of text; what is no list is one of one, nothing is an empty one.
        parse: an object from a line, in place of JSON, such as :func:`python_literal`.
        unique: column whose values may occur only once; the first row wins.
        piece_bytes: see :func:`~recparallel.data.lines.read_lines`.

    Yields:
        The well-formed rows in file order with the columns of ``fields`` and ``lists``, and ``line`` (int64, 1-based).

    Raises:
        DataError: the file is empty, or too many rows are malformed.
    """
    lists = lists or {}
    known = pl.Series(dtype=pl.String)
    for table in read_lines(path, encoding="utf-8", piece_bytes=piece_bytes):
        decoded = None if parse else _decode_at_once(table["text"], fields, lists)
        if decoded is None:
            decoded, reasons = _decode_each(table["text"], fields, lists, parse or json.loads)
            table = table.with_columns(reason=pl.coalesce("reason", reasons))
        table = convert(pl.concat([table, decoded], how="horizontal"), columns)
        table = table.with_columns(pl.col(name).fill_null([]).list.drop_nulls() for name in lists)
        if unique is not None:
            table, known = complain_of_repeated(table, unique, known)
        yield tally.keep(table, path).select("line", *fields, *lists)
    tally.finish(path)


def python_literal(text: str) -> Any:
    """The value of a Python literal, as in dumps of dictionaries (``{u'user': u'…'}``).

    Raises:
        ValueError: it is none.
    """
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _decode_at_once(texts: pl.Series, fields: Mapping[str, str], lists: Mapping[str, str]) -> pl.DataFrame | None:
    """All lines by Polars; None where one of them is not what is expected."""
    schema: dict[str, Any] = dict.fromkeys(fields.values(), pl.String)
    schema |= {key: pl.List(pl.String) for key in lists.values()}
    if texts.str.contains(_SURROGATE).any():  # Polars makes something else of half a pair
        return None
    try:
        decoded = texts.str.json_decode(pl.Struct(schema))
    except pl.exceptions.ComputeError:
        return None
    if decoded.null_count():
        return None
    return decoded.struct.unnest().select(
        *(pl.col(key).alias(name) for name, key in fields.items()),
        *(pl.col(key).alias(name) for name, key in lists.items()),
    )


def _decode_each(
    texts: pl.Series, fields: Mapping[str, str], lists: Mapping[str, str], parse: Parse
) -> tuple[pl.DataFrame, pl.Series]:
    """Line by line, and what is wrong with each (null: nothing)."""
    records, reasons = zip(*(_parse(text, parse) for text in texts))
    columns = {name: pl.Series([_text(r.get(key)) for r in records], dtype=pl.String) for name, key in fields.items()}
    listed = {
        name: pl.Series([_list(r.get(key)) for r in records], dtype=pl.List(pl.String)) for name, key in lists.items()
    }
    return pl.DataFrame({**columns, **listed}), pl.Series("reasons", reasons, dtype=pl.String)


def _parse(text: str, parse: Parse) -> tuple[dict[str, Any], str | None]:
    try:
        record = parse(text)
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except (ValueError, RecursionError) as error:  # one half of a surrogate pair is a ValueError too
        return {}, f"cannot be parsed: {error}"
    if not isinstance(record, dict):
        return {}, f"expected an object, found a {type(record).__name__}"
    return record, None


def _text(value: Any) -> str | None:
    """As Polars writes it, so that it does not matter which way a line was read."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f").removesuffix(".0")
    return json.dumps(value) if isinstance(value, (bool, dict, list)) else str(value)


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [text for text in map(_text, values) if text is not None]
