"""Read a text file, compressed or not, as tables of lines: a piece at a time, so that its size does not matter."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, cast

import polars as pl

from recparallel.errors import DataError

Encoding = Literal["latin-1", "utf-8"]

PIECE_BYTES = 32 * 2**20
_HEADER_BYTES = 2**20
MAX_LINE_BYTES = 256 * 2**20
"""Of one line: what is longer is not a line, and would have to be held in memory several times."""


def read_lines(path: Path, *, encoding: Encoding, piece_bytes: int = PIECE_BYTES) -> Iterator[pl.DataFrame]:
    """Give the lines of a file in order, about ``piece_bytes`` of them at a time.

    Args:
        path: a text file; one that ends in ``.gz`` is unpacked while it is read.
        encoding: of the file.
        piece_bytes: of text in one table; at least one line.

    Yields:
        Columns ``line`` (int64, 1-based), ``text`` (string, without the line end) and ``reason`` (string; null where
        the line is well-formed so far). Blank lines at the end of the file are no rows.

    Raises:
        DataError: the file holds nothing but blank lines, is longer than :data:`MAX_LINE_BYTES` in one line, or cannot be
            unpacked.
    """
    first, blank = 1, 0  # blank lines that may yet turn out to be the file's end
    for piece in _pieces(path, piece_bytes):
        table = _decode(piece, encoding).with_columns(pl.col("text").str.strip_suffix("\r"))
        filled = (table["text"].str.strip_chars() != "").arg_true()
        if not len(filled):
            blank += table.height
            continue
        end = int(filled[-1]) + 1
        held = pl.DataFrame({"text": [""] * blank, "reason": [None] * blank}, schema=table.schema)
        lines = pl.concat([held, table[:end]]).with_row_index("line", offset=first)
        yield lines.with_columns(pl.col("line").cast(pl.Int64))
        first += lines.height
        blank = table.height - end
    if first == 1:
        raise DataError(f"{path}: the file is empty; expected at least one row")


def first_line(path: Path, *, encoding: Encoding) -> str:
    """The first line of a file, without its end.

    Raises:
        DataError: the line is longer than a header is, or the file cannot be unpacked.
    """
    with _open(path) as file:
        line = file.readline(_HEADER_BYTES)
    if not line.endswith(b"\n") and len(line) == _HEADER_BYTES:
        raise DataError(
            f"{path}: the first line is longer than {_HEADER_BYTES // 2**20} MiB; expected the names of columns"
        )
    return _decode(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n"), encoding)["text"][0]  # type: ignore[no-any-return]


def _pieces(path: Path, piece_bytes: int) -> Iterator[bytes]:
    """Whole lines, the end of the last one left out."""
    begun: list[bytes] = []  # a line, whose end is not there yet
    with _open(path) as file:
        if (start := file.read(len(codecs.BOM_UTF8))) != codecs.BOM_UTF8:
            begun.append(start)
        while block := file.read(piece_bytes):
            whole, end, rest = block.rpartition(b"\n")
            if end:
                yield b"".join([*begun, whole])
                begun = []
            begun.append(rest)
            if sum(map(len, begun)) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}: a line is longer than {MAX_LINE_BYTES // 2**20} MiB and begins with "
                    f"{begun[0][:60].decode('latin-1')!r}; expected one record a line"
                )
    if any(begun):
        yield b"".join(begun)


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        with cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked, it is damaged or was not loaded to its end: {error}") from error


def _decode(raw: bytes, encoding: Encoding) -> pl.DataFrame:
    """Columns ``text``, and ``reason``: what does not decode."""
    schema = {"text": pl.String, "reason": pl.String}
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        return pl.DataFrame([_decode_line(line, encoding) for line in raw.split(b"\n")], schema=schema, orient="row")
    # Not splitlines(), which would also cut at latin-1's 0x85, a character of a title.
    lines = pl.Series("text", [text]).str.split("\n").explode()
    return lines.to_frame().with_columns(reason=pl.lit(None, dtype=pl.String))


def _decode_line(line: bytes, encoding: Encoding) -> tuple[str, str | None]:
    try:
        return line.decode(encoding), None
    except UnicodeDecodeError as error:
        reason = f"byte 0x{line[error.start]:02x} at column {error.start + 1} is not {encoding}"
        return line.decode(encoding, errors="backslashreplace"), reason
