import gzip
import logging

import polars as pl
import pytest

from recparallel.data import lines
from recparallel.data.columns import Number, Text, Time
from recparallel.data.delimited import read_delimited
from recparallel.data.malformed import Tally
from recparallel.errors import DataError

GOOD = "u{0}::i{0}::4::{0}\n"


def read(path, *, max_malformed=0.5, **overrides):
    tally = Tally(max_malformed)
    settings = {
        "separator": "::",
        "columns": {"user": Text(True), "item": Text(), "rating": Number(), "timestamp": Time(None)},
        "encoding": "utf-8",
        "tally": tally,
    }
    return pl.concat(read_delimited(path, **{**settings, **overrides})), tally.report


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"u::i::4", "expected 4 fields, found 3"),
        (b"u::i::4::5::6", "expected 4 fields, found 5"),
        (b"", "expected 4 fields, found 1"),
        (b"u::i::four::5", "rating 'four' is not a number (Float32)"),
        (b"u::i::nan::5", "rating 'nan' is not a number (Float32)"),
        (b"u::i::4::5.5", "timestamp '5.5' is not a whole number"),
        (b"u::i::4::99999999999999999999", "timestamp '99999999999999999999' is not a whole number"),
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
    table, _ = read(tmp_path / "log", separator="|", columns=dict.fromkeys("xyz", Text()))
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
    told = [message for message in caplog.messages if f"{tmp_path / 'log'}:" in message]
    assert f"{tmp_path / 'log'}:1: " in told[0]
    assert len(told) == 6  # the first five, and a line that says how many
    assert "10 malformed rows of 10000" in told[-1]

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


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 10_000])
def test_pieces_do_not_change_what_is_read(tmp_path, piece_bytes):
    rows = [GOOD.format(i) for i in range(40)]
    rows[3], rows[20], rows[39] = "\n", "bad\n", GOOD.format(39).rstrip("\n")
    (tmp_path / "log").write_bytes(b"\xef\xbb\xbf" + "".join(rows).replace("\n", "\r\n").encode() + b"\r\n\r\n")
    whole, report = read(tmp_path / "log", unique="user")
    table, again = read(tmp_path / "log", unique="user", piece_bytes=piece_bytes)
    assert table.equals(whole)
    assert again == report
    assert [row.line for row in report.first] == [4, 21]
    assert (report.num_rows, table["line"][-1]) == (40, 40)


def test_a_key_of_an_earlier_piece_is_known(tmp_path):
    (tmp_path / "log").write_text("a::i::1::1\nb::i::1::1\na::i::2::2\n")
    table, _ = read(tmp_path / "log", unique="user", piece_bytes=1)
    assert table["user"].to_list() == ["a", "b"]


def test_gzip_is_unpacked_and_a_damaged_file_is_named(tmp_path):
    packed = gzip.compress("".join(GOOD.format(i) for i in range(1000)).encode())
    (tmp_path / "log.gz").write_bytes(packed)
    assert read(tmp_path / "log.gz")[0].height == 1000
    (tmp_path / "log.gz").write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"log\.gz: cannot be unpacked"):
        read(tmp_path / "log.gz")


def test_a_line_without_an_end_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**20)
    (tmp_path / "log").write_text("u" * (3 * 2**20))
    with pytest.raises(DataError, match="a line is longer than 1 MiB and begins with 'uuu"):
        read(tmp_path / "log", piece_bytes=2**19)


def read_csv(path, **overrides):
    header = {"user": "who", "rating": "stars"}
    columns = {"user": Text(True), "rating": Number()}
    return read(path, separator=",", header=header, columns=columns, quoted=True, **overrides)


def test_a_header_finds_columns_by_name(tmp_path):
    (tmp_path / "log").write_text('stars,"the, text",who\n4,"say ""hi"", twice",a\n5,,"b,c"\nx,,d\n3,"open,e\n')
    table, report = read_csv(tmp_path / "log")
    assert table.rows() == [(2, "a", 4.0), (3, "b,c", 5.0)]
    assert [(row.line, row.reason) for row in report.first] == [
        (4, "rating 'x' is not a number (Float32)"),
        (5, "quotation marks do not go together on this line"),
    ]


def test_a_missing_column_says_which_there_are(tmp_path):
    (tmp_path / "log").write_text("who,when\na,1\n")
    with pytest.raises(DataError, match=r"log: no column 'stars'; the file has 'who', 'when'$"):
        read_csv(tmp_path / "log")


def test_the_wrong_separator_is_guessed(tmp_path):
    (tmp_path / "log").write_text("who;stars\na;1\n")
    with pytest.raises(DataError, match=r"the file has 'who;stars'; is the separator another one than ','\?"):
        read_csv(tmp_path / "log")


def test_a_header_alone_is_an_error(tmp_path):
    (tmp_path / "log").write_text("who,stars\n")
    with pytest.raises(DataError, match="no rows beside its header"):
        read_csv(tmp_path / "log")


def test_a_file_that_is_mostly_malformed_is_not_read_to_its_end(tmp_path):
    (tmp_path / "log").write_text("bad\n" * 30_000)
    tally = Tally(0.001)
    pieces = read_delimited(
        tmp_path / "log", separator="::", columns={"user": Text(), "item": Text()}, tally=tally, piece_bytes=40_000
    )
    with pytest.raises(DataError, match="10000 of 10000 rows are malformed"):
        list(pieces)


def test_a_gzip_file_with_wrong_bytes_is_named(tmp_path):
    packed = bytearray(gzip.compress("".join(GOOD.format(i) for i in range(1000)).encode()))
    packed[12:40] = bytes(28)
    (tmp_path / "log.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"log\.gz: cannot be unpacked"):
        read(tmp_path / "log.gz")


def test_a_header_without_an_end_stops_at_once(tmp_path):
    (tmp_path / "log").write_text("x" * (2 * 2**20))
    with pytest.raises(DataError, match="the first line is longer than 1 MiB"):
        read_csv(tmp_path / "log")


def test_a_mark_inside_the_file_stays(tmp_path):
    (tmp_path / "log").write_bytes(GOOD.format(1).encode() + "\ufeffu2::i::4::2\n".encode())
    for piece_bytes in (1, 10_000):
        assert read(tmp_path / "log", piece_bytes=piece_bytes)[0]["user"].to_list() == ["u1", "\ufeffu2"]
