"""What a field of a record has to be: text, a number, or a time. Fields come as text, whatever the file's format.

Each kind gives the value of a field, and what to complain about where it is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import polars as pl

Unit = Literal["s", "ms", "us", "ns"]

UNITS: dict[Unit, tuple[str, int]] = {
    "s": ("seconds", 1_000),
    "ms": ("milliseconds", 1),
    "us": ("microseconds", -1_000),
    "ns": ("nanoseconds", -1_000_000),
}
"""Name, and factor to milliseconds; negative: divide."""

_LAST = 4_102_444_800_000
"""The year 2100, in milliseconds since 1970."""

_EARLY = 100_000_000_000
"""March 1973, in milliseconds since 1970: what lies before it was most likely given in a longer unit."""


class Column(Protocol):
    """One field."""

    def read(self, text: pl.Expr) -> pl.Expr:
        """The value; null where there is none."""

    def complain(self, name: str, text: pl.Expr) -> pl.Expr:
        """Why the row is malformed; null where it is not."""


@dataclass(frozen=True)
class Text:
    """Text, as it stands. A field that is left out is empty.

    Attributes:
        required: may not be empty.
    """

    required: bool = False

    def read(self, text: pl.Expr) -> pl.Expr:
        return text.fill_null("")

    def complain(self, name: str, text: pl.Expr) -> pl.Expr:
        empty = text.is_null() | (text.str.strip_chars() == "")
        return pl.when(empty & self.required).then(pl.lit(f"{name} is empty"))


@dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
        dtype: a Polars type.
        default: of a field that is empty or left out; without it, such a row is malformed.
    """

    dtype: Any = pl.Float32
    default: float | None = None

    def read(self, text: pl.Expr) -> pl.Expr:
        text = text.replace({"true": "1", "false": "0"})  # a label, as JSON and Parquet have it
        value = text.cast(self.dtype, strict=False)
        if self.dtype.is_float():
            value = pl.when(value.is_finite()).then(value)
        if self.default is None:
            return value
        return pl.when(_empty(text)).then(pl.lit(self.default, dtype=self.dtype)).otherwise(value)

    def complain(self, name: str, text: pl.Expr) -> pl.Expr:
        wrong = pl.format(f"{name} '{{}}' is not a number ({self.dtype})", text.fill_null(""))
        return pl.when(self.read(text).is_null()).then(wrong)


@dataclass(frozen=True)
class Time:
    """A time, in milliseconds since 1970 (int64).

    Attributes:
        unit: of numbers; one outside the years 1970 to 2100, or as early as it only is in a unit too long, is malformed,
            so that a file in another unit does not pass unseen. None takes whole numbers that order events, as they are.
        format: of dates, as ``strftime`` writes them, in UTC; excludes ``unit``.
    """

    unit: Unit | None = "s"
    format: str | None = None

    def read(self, text: pl.Expr) -> pl.Expr:
        return pl.when(self.complain("", text).is_null()).then(self._milliseconds(text))

    def complain(self, name: str, text: pl.Expr) -> pl.Expr:
        at, shown = self._milliseconds(text), text.fill_null("")
        if self.format is not None:
            return pl.when(at.is_null()).then(pl.format(f"{name} '{{}}' is no time of the form {self.format}", shown))
        nothing = pl.when(at.is_null()).then(pl.format(f"{name} '{{}}' is not a whole number", shown))
        if self.unit is None:
            return nothing
        word = UNITS[self.unit][0]
        outside = (at < 0) | (at >= _LAST)
        if self.unit != "s":
            outside |= (at > 0) & (at < _EARLY)
        wrong = pl.format(f"{name} '{{}}' is no time in {word} between 1970 and 2100", shown)
        others = []
        for other in UNITS:
            fits = (instead := _as_milliseconds(text, other)).is_between(_EARLY, _LAST, closed="left")
            instead = pl.when(fits).then(instead)  # others may be no dates at all
            year = instead.cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d")
            others.append(
                pl.when(fits & (pl.lit(other) != self.unit)).then(
                    pl.format(f" (in {UNITS[other][0]} it is {{}})", year)
                )
            )
        hint = pl.coalesce(*others, pl.lit(""))
        return pl.coalesce(nothing, pl.when(outside).then(pl.concat_str(wrong, hint)))

    def _milliseconds(self, text: pl.Expr) -> pl.Expr:
        if self.format is not None:
            return text.str.to_datetime(self.format, time_unit="ms", strict=False).cast(pl.Int64)
        return _as_milliseconds(text, self.unit)


def convert(table: pl.DataFrame, columns: Mapping[str, Column]) -> pl.DataFrame:
    """Read the columns of text: their values, and ``reason`` where a row had none so far and a field is no value."""
    complaints = [column.complain(name, pl.col(name)) for name, column in columns.items()]
    table = table.with_columns(reason=pl.coalesce("reason", *complaints))
    return table.with_columns(**{name: column.read(pl.col(name)) for name, column in columns.items()})


def _as_milliseconds(text: pl.Expr, unit: Unit | None) -> pl.Expr:
    # Some logs have whole seconds as 978300760.0.
    number = pl.coalesce(text.cast(pl.Int64, strict=False), _whole(text.cast(pl.Float64, strict=False)))
    if unit is None:
        return number
    factor = UNITS[unit][1]
    if factor < 0:
        return number // -factor
    # Far outside, whatever it is: no product that overflows.
    return pl.when(number.abs() < 2**52).then(number * factor).otherwise(number.sign() * 2**62)


def _whole(number: pl.Expr) -> pl.Expr:
    return pl.when((number == number.floor()) & (number.abs() < 2**53)).then(number).cast(pl.Int64, strict=False)


def _empty(text: pl.Expr) -> pl.Expr:
    return text.is_null() | (text.str.strip_chars() == "")
