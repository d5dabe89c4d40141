import logging

import polars as pl
import pytest

from recparallel.data.delimited import read_delimited
from recparallel.errors import DataError

GOOD = "u{0}::i{0}::4::{0}\n"


def read(path, **overrides):
    settings = {
        "separator": "::",
        "columns": ("user", "item", "rating", "timestamp"),
        "numbers": {"rating": pl.Float32, "timestamp": pl.Int64},
        "required": ("user",),
        "encoding": "utf-8",
        "max_malformed": 0.5,
    }
    return read_delimited(path, **{**settings, **overrides})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"u::i::4", "expected 4 fields, found 3"),
        (b"u::i::4::5::6", "expected 4 fields, found 5"),
        (b"", "expected 4 fields, found 1"),
        (b"u::i::four::5", "rating 'four' is not a number (Float32)"),
        (b"u::i::nan::5", "rating 'nan' is not a number (Float32)"),
        (b"u::i::4::5.5", "timestamp '5.5' is not a number (Int64)"),
        (b"u::i::4::99999999999999999999", "timestamp '99999999999999999999' is not a number (Int64)"),
        (b"::i::4::5", "user is empty"),
        (b"u::caf\xe9::4::5", "byte 0xe9 at column 7 is not utf-8"),
    ],
)
def test_a_malformed_row_is_left_out_and_named(tmp_path, row, reason):
    path = tmp_path / "log"
    path.write_bytes(GOOD.format(1).encode() + row + b"\n" + GOOD.format(3).encode() + GOOD.format(4).encode())
    table, report = read(path)
    assert table["user"].to_list() == ["u1", "u3", "u4"]
    assert table["line"].to_list() == [1, 3, 4]
    assert (report.num_rows, report.num_malformed) == (4, 1)
    (malformed,) = report.first
    assert (malformed.path, malformed.line, malformed.reason) == (path, 2, reason)


def test_values_and_types(tmp_path):
    (tmp_path / "log").write_bytes(b"u::caf\xe9\x85::3.5::-7\r\nv::b::4::8")
    table, report = read(tmp_path / "log", encoding="latin-1")
    assert table.drop("line").rows() == [("u", "caf\xe9\x85", 3.5, -7), ("v", "b", 4.0, 8)]
    assert table.schema["rating"] == pl.Float32
    assert table.schema["timestamp"] == pl.Int64
    assert report.num_malformed == 0


def test_a_separator_is_text_not_a_pattern(tmp_path):
    (tmp_path / "log").write_text("a|b.c|\n")
    table, _ = read(tmp_path / "log", separator="|", columns=("x", "y", "z"), numbers={}, required=())
    assert table.drop("line").rows() == [("a", "b.c", "")]


def test_blank_lines_at_the_end_and_a_byte_order_mark_are_no_rows(tmp_path):
    (tmp_path / "log").write_bytes(b"\xef\xbb\xbf" + GOOD.format(1).encode() + b"\n  \r\n\n")
    table, report = read(tmp_path / "log", max_malformed=0)
    assert table["user"].to_list() == ["u1"]
    assert report.num_rows == 1


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path, content):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(DataError, match=r"log: the file is empty"):
        read(tmp_path / "log")


def test_a_repeated_key_is_malformed_even_after_a_malformed_first(tmp_path):
    (tmp_path / "log").write_text("a::i::x::1\na::j::1::1\nb::i::1::1\na::k::1::1\nc::k::1::1\n")
    table, report = read(tmp_path / "log", unique="user")
    assert table.select("user", "item").rows() == [("a", "j"), ("b", "i"), ("c", "k")]
    assert [(row.line, row.reason) for row in report.first][1] == (4, "user 'a' is on an earlier line")


def write_rows(path, *, num_good, num_bad):
    path.write_text("bad\n" * num_bad + "".join(GOOD.format(i) for i in range(num_good)))


def test_one_bad_row_stops_a_small_file_and_lists_it(tmp_path):
    write_rows(tmp_path / "log", num_good=9, num_bad=1)
    with pytest.raises(DataError) as error:
        read(tmp_path / "log", max_malformed=0.001)
    assert f"{tmp_path / 'log'}:1: expected 4 fields, found 1: 'bad'" in str(error.value)
    assert "1 of 10 rows" in str(error.value)


def test_the_limit_is_a_share_and_what_passes_is_logged(tmp_path, caplog):
    write_rows(tmp_path / "log", num_good=9990, num_bad=10)
    with caplog.at_level(logging.WARNING):
        table, report = read(tmp_path / "log", max_malformed=0.001)
    assert (table.height, report.num_malformed) == (9990, 10)
    lines = [message for message in caplog.messages if f"{tmp_path / 'log'}:" in message]
    assert f"{tmp_path / 'log'}:1: " in lines[0]
    assert len(lines) == 6  # the first five, and a line that says how many
    assert "10 malformed rows of 10000" in lines[-1]

    write_rows(tmp_path / "log", num_good=9989, num_bad=11)
    with pytest.raises(DataError, match="11 of 10000"):
        read(tmp_path / "log", max_malformed=0.001)


def test_a_file_without_any_good_row_stops_whatever_the_limit(tmp_path):
    write_rows(tmp_path / "log", num_good=0, num_bad=3)
    with pytest.raises(DataError, match="3 of 3"):
        read(tmp_path / "log", max_malformed=1.0)


def test_long_rows_are_shortened_in_messages(tmp_path):
    (tmp_path / "log").write_text("x" * 10_000)
    with pytest.raises(DataError) as error:
        read(tmp_path / "log")
    assert len(str(error.value)) < 1000
