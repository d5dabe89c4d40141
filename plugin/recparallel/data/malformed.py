"""Rows of a file that cannot be read, and how many of them are too many."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from recparallel.errors import DataError

logger = logging.getLogger(__name__)

NUM_KEPT = 20
NUM_SHOWN = 5
_MAX_TEXT = 80

_EARLY_ROWS = 10_000
"""After so many rows of which half are malformed, reading the rest would only take time."""


@dataclass(frozen=True)
class MalformedRow:
    """One row that could not be read.

    Args:
        path: the file.
        line: 1-based line number.
        reason: what is wrong with it, in words.
        text: the row, shortened.
    """

    path: Path
    line: int
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}: {self.text!r}"


@dataclass(frozen=True)
class MalformedReport:
    """How many rows were read and how many of them had to be left out.

    Reports of several files add up with ``+``.

    Args:
        num_rows: rows looked at, well-formed or not (blank lines at the end of a file are not rows).
        num_malformed: rows left out.
        first: the first ``NUM_KEPT`` of the rows left out, of each file.
    """

    num_rows: int = 0
    num_malformed: int = 0
    first: tuple[MalformedRow, ...] = ()

    def __add__(self, other: "MalformedReport") -> "MalformedReport":
        return MalformedReport(
            num_rows=self.num_rows + other.num_rows,
            num_malformed=self.num_malformed + other.num_malformed,
            first=self.first + other.first,
        )

    def check(self, *, path: Path, max_malformed: float) -> None:
        """Log the first malformed rows, or stop if they are more than ``max_malformed`` of all rows.

        The limit is a plain share: with 0.001, one bad row stops a file of less than 1,000 rows, and 100 pass in
        100,000. A file without any well-formed row stops whatever the limit.

        Raises:
            DataError: too many malformed rows; the message lists the first ones as ``path:line: reason: text``.
        """
        shown = [str(row) for row in self.first[:NUM_SHOWN]]
        if self.num_malformed > max_malformed * self.num_rows or self.num_malformed == self.num_rows:
            raise DataError(
                f"{path}: {self.num_malformed} of {self.num_rows} rows are malformed; allowed is a share of "
                f"{max_malformed:g} (max_malformed) and at least one row must be well-formed. The first ones:\n"
                + "\n".join(shown)
            )
        for row in shown:
            logger.warning("left out a malformed row: %s", row)
        if self.num_malformed > len(shown):
            logger.warning("%s: left out %d malformed rows of %d in all", path, self.num_malformed, self.num_rows)


@dataclass
class Tally:
    """Counts the malformed rows of a reading, file by file and piece by piece.

    Attributes:
        max_malformed: share of a file's rows that may be malformed.
        report: of the files that are done.
    """

    max_malformed: float = 0.001
    report: MalformedReport = field(default_factory=MalformedReport)
    _open: dict[Path, MalformedReport] = field(default_factory=dict)

    def keep(self, table: pl.DataFrame, path: Path) -> pl.DataFrame:
        """Part the rows of a piece: those with a ``reason`` are counted, those without are returned.

        Args:
            table: columns ``line``, ``text`` and ``reason``, and any others.
            path: the file.

        Raises:
            DataError: most rows of the file are malformed so far, so it is not worth reading on.
        """
        bad = table.filter(pl.col("reason").is_not_null())
        former = self._open.get(path, MalformedReport())
        rows = bad.head(NUM_KEPT - len(former.first)).select("line", "reason", "text").iter_rows()
        first = tuple(MalformedRow(path, line, reason, shorten(text)) for line, reason, text in rows)
        now = former + MalformedReport(table.height, bad.height, first)
        self._open[path] = now
        if now.num_rows >= _EARLY_ROWS and now.num_malformed > max(0.5, self.max_malformed) * now.num_rows:
            now.check(path=path, max_malformed=self.max_malformed)
        return table.filter(pl.col("reason").is_null())

    def finish(self, path: Path) -> None:
        """A file is read to its end.

        Raises:
            DataError: it has no rows, or too many of them are malformed, see :meth:`MalformedReport.check`.
        """
        done = self._open.pop(path, MalformedReport())
        if not done.num_rows:
            raise DataError(f"{path}: the file has no rows beside its header")
        done.check(path=path, max_malformed=self.max_malformed)
        self.report += done


def shorten(text: str) -> str:
    """A row as messages show it."""
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
