import pytest

from recparallel.data.loading import load_log
from recparallel.data.log import INTERACTION_FEATURES, ITEM_FEATURES
from recparallel.data.readers import Reader
from recparallel.data.readers.movielens_100k import GENRES
from recparallel.errors import ConfigError, DataError, UnknownNameError
from recparallel.registry import readers


def flags(*names, of=GENRES):
    return "|".join("1" if genre in names else "0" for genre in of)


@pytest.fixture
def folders(tmp_path):
    """A tiny dataset in every original format, all with the user 'b' before 'a' and an item of title 'Délicatessen'."""
    for name in ("movielens-100k", "movielens-1m", "sequences"):
        (tmp_path / name).mkdir()
    (tmp_path / "movielens-100k" / "u.data").write_text("b\t7\t5\t90\na\t9\t3\t80\n")
    lines = [
        f"7|Délicatessen (1991)|01-Jan-1991||http://x|{flags('Comedy', 'Sci-Fi')}",
        f"9|unknown||||{flags('unknown')}",
    ]
    (tmp_path / "movielens-100k" / "u.item").write_bytes("\n".join(lines).encode("latin-1"))
    (tmp_path / "movielens-1m" / "ratings.dat").write_text("b::7::5::90\na::9::3::80\n")
    (tmp_path / "movielens-1m" / "movies.dat").write_bytes(
        "7::Délicatessen (1991)::Comedy|Sci-Fi\n9::unknown::unknown\n".encode("latin-1")
    )
    (tmp_path / "sequences" / "sequences.txt").write_text("b 7 9\na\t9\n")
    return tmp_path


@pytest.mark.parametrize("name", ["movielens-100k", "movielens-1m"])
def test_movielens(folders, name):
    log = load_log(name, folders / name)
    assert log.name == name
    assert log.interactions.to_list() == [
        {"user": "b", "item": "7", "timestamp": 90_000, "rating": 5.0},
        {"user": "a", "item": "9", "timestamp": 80_000, "rating": 3.0},
    ]
    assert log.items.to_list() == [
        {"item": "7", "title": "Délicatessen (1991)", "genres": ["Comedy", "Sci-Fi"]},
        {"item": "9", "title": "unknown", "genres": ["unknown"]},
    ]


def test_sequences_without_titles(folders):
    log = load_log("sequences", str(folders / "sequences"))
    assert log.interactions.to_list() == [
        {"user": "b", "item": "7", "timestamp": 0, "rating": 1.0},
        {"user": "b", "item": "9", "timestamp": 1, "rating": 1.0},
        {"user": "a", "item": "9", "timestamp": 0, "rating": 1.0},
    ]
    assert log.items.to_list() == []


def test_sequences_with_titles(folders):
    (folders / "sequences" / "movies.dat").write_bytes("7::Délicatessen (1991)::Comedy|Sci-Fi\n".encode("latin-1"))
    log = load_log("sequences", folders / "sequences")
    assert log.items.to_list() == [
        {"item": "7", "title": "Délicatessen (1991)", "genres": ["Comedy", "Sci-Fi"]},
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a", "expected a user and at least one item, found 1 fields"),
        ("", "expected a user and at least one item, found 0 fields"),
        ("b 3", "user 'b' is on an earlier line"),
    ],
)
def test_malformed_sequences(folders, line, reason):
    (folders / "sequences" / "sequences.txt").write_text(f"b 7 9\n{line}\nc 7\nd 8\n")
    log = load_log("sequences", folders / "sequences", max_malformed=0.25)
    assert log.interactions["user"][:] == ["b", "b", "c", "d"]
    assert [(row.line, row.reason) for row in log.malformed.first] == [(2, reason)]


def test_all_readers_share_their_features(folders):
    for name in ("movielens-100k", "movielens-1m", "sequences", "synthetic"):
        log = load_log(name, folders / name if name != "synthetic" else None)
        assert log.interactions.features == INTERACTION_FEATURES
        assert log.items.features == ITEM_FEATURES
        assert log.name == name


def test_u_genre_names_the_flags(folders):
    names = ("Noir", "Weepie")
    (folders / "movielens-100k" / "u.genre").write_text("Weepie|1\nNoir|0\n\n")
    (folders / "movielens-100k" / "u.item").write_text(f"7|Rain (1932)||||{flags('Weepie', of=names)}\n")
    assert load_log("movielens-100k", folders / "movielens-100k").items["genres"][:] == [["Weepie"]]


def test_u_genre_with_a_gap_is_an_error(folders):
    (folders / "movielens-100k" / "u.genre").write_text("Weepie|2\nNoir|0\n")
    with pytest.raises(DataError, match=r"u\.genre.*0 to 1.*\[0, 2\]"):
        load_log("movielens-100k", folders / "movielens-100k")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("movielens-100k", "u.data"),
        ("movielens-100k", "u.item"),
        ("movielens-1m", "ratings.dat"),
        ("movielens-1m", "movies.dat"),
        ("sequences", "sequences.txt"),
    ],
)
def test_max_malformed_reaches_every_file(folders, name, file):
    path = folders / name / file
    path.write_bytes(b"oops\n" + path.read_bytes())
    with pytest.raises(DataError) as error:
        load_log(name, folders / name)
    assert f"{path}:1: " in str(error.value)
    assert load_log(name, folders / name, max_malformed=0.5).malformed.num_malformed == 1


def test_missing_files_are_named_with_their_source(folders):
    (folders / "movielens-1m" / "ratings.dat").unlink()
    with pytest.raises(DataError) as error:
        load_log("movielens-1m", folders / "movielens-1m")
    message = str(error.value)
    assert "ratings.dat, movies.dat" in message
    assert "missing: ratings.dat." in message
    assert str(folders / "movielens-1m") in message
    assert "https://grouplens.org/datasets/movielens/1m/" in message


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist; missing: u\.data, u\.item"):
        load_log("movielens-100k", tmp_path / "nowhere")


def test_no_folder_is_an_error_unless_the_log_is_generated():
    with pytest.raises(DataError, match=r"'sequences' needs a data_dir.*sequences\.txt"):
        load_log("sequences", None)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"movielens_1m.*Did you mean 'movielens-1m'"):
        load_log("movielens_1m", None)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_max_malformed_must_be_a_share(share):
    with pytest.raises(ConfigError, match="max_malformed"):
        load_log("synthetic", None, max_malformed=share)


def test_every_registered_reader_is_complete():
    for name in readers:
        reader = readers.load(name)
        assert issubclass(reader, Reader)
        assert reader.name == name
        assert reader.files or reader.generates
        assert reader.source


def test_an_option_that_a_reader_has_not_is_named():
    with pytest.raises(ConfigError, match=r"'movielens-1m' has no option 'user'; allowed are none"):
        load_log("movielens-1m", None, options={"user": "uid"})
    with pytest.raises(ConfigError, match=r"'csv' has no option 'usr'; allowed are .*user \(column of users"):
        load_log("csv", None, options={"usr": "uid"})


@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [("movielens-100k", "ml-100k", (100_000, 943, 1682)), ("sequences", "ml-1m", (1_000_209, 6040, 3706))],
)
def test_real_logs(real_data, name, folder, counts):
    log = load_log(name, real_data(folder), max_malformed=0)
    table = log.interactions.to_polars()
    assert (table.height, table["user"].n_unique(), table["item"].n_unique()) == counts
    assert log.items[0] == {"item": "1", "title": "Toy Story (1995)", "genres": ["Animation", "Children's", "Comedy"]}
    assert not any("\ufffd" in title for title in log.items["title"])
    assert any("é" in title for title in log.items["title"])
