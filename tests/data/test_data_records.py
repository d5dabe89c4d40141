import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparallel.data import records
from recparallel.data.columns import Number, Text
from recparallel.data.malformed import Tally
from recparallel.data.records import python_literal, read_records


def read(path, **overrides):
    tally = Tally(0.9)
    options = {"fields": {"user": "u", "rating": "r"}, "columns": {"user": Text(True), "rating": Number(default=1.0)}}
    return pl.concat(read_records(path, tally=tally, **{**options, **overrides})), tally.report


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("records") / "log.jsonl"


value = st.one_of(
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e18, max_value=1e18),
    st.booleans(),
    st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zs"])),
)


@given(users=st.lists(value, min_size=1, max_size=8))
def test_a_broken_line_does_not_change_how_others_are_read(path, users):
    """All lines at once by Polars, or one by one where one is broken: the same names."""
    lines = [json.dumps({"u": user, "r": 1}) for user in users]
    path.write_text("\n".join(lines) + "\n")
    at_once, _ = read(path)
    path.write_text("\n".join(lines) + "\n{broken\n")
    one_by_one, report = read(path)
    assert report.num_malformed == 1
    assert one_by_one["user"].to_list() == at_once["user"].to_list()


def test_names_of_numbers(path):
    path.write_text("".join(f'{{"u": {user}}}\n' for user in ("7", "7.0", "1e16", "1.5e-7", "0.1", "true")))
    expected = ["7", "7", "10000000000000000", "0.00000015", "0.1", "true"]
    assert read(path)[0]["user"].to_list() == expected


def test_half_a_surrogate_pair_is_malformed_and_a_whole_one_is_read(path):
    path.write_text('{"u": "\\ud83d"}\n{"u": "\\ud83d\\ude00"}\n')
    table, report = read(path)
    assert table["user"].to_list() == ["\U0001f600"]
    assert report.first[0].line == 1
    path.write_text("{u'u': u'\\ud83d'}\n{u'u': u'b'}\n")
    table, report = read(path, parse=python_literal)
    assert (table["user"].to_list(), report.num_malformed) == (["b"], 1)


def test_labels_are_numbers(path):
    path.write_text('{"u": "a", "r": true}\n{"u": "b", "r": false}\n{"u": "c"}\n{"u": "d", "r": "yes"}\n')
    table, report = read(path)
    assert table["rating"].to_list() == [1.0, 0.0, 1.0]
    assert report.first[0].reason == "rating 'yes' is not a number (Float32)"


def test_a_list_in_place_of_text_reads_alike(path, monkeypatch):
    path.write_text('{"u": ["a", 1], "r": 1}\n{"u": {"b": 2}, "r": 1}\n')
    assert read(path)[0]["user"].to_list() == ['["a", 1]', '{"b": 2}']
    path.write_text('{"u": "a", "g": ["x", null, 2]}\n{"u": "b", "g": "y"}\n{"u": "c", "g": null}\n')
    assert read(path, lists={"genres": "g"})[0]["genres"].to_list() == [["x", "2"], ["y"], []]
    monkeypatch.setattr(records, "_decode_at_once", lambda *_: None)
    assert read(path, lists={"genres": "g"})[0]["genres"].to_list() == [["x", "2"], ["y"], []]
