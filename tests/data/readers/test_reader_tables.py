"""Sources that are tables already: Parquet, and datasets of the hub (here: of a folder)."""

from datetime import datetime, timezone

import polars as pl
import pytest

from recparallel.data.cleaning import Filters
from recparallel.data.loading import load_log
from recparallel.data.preparation import prepare
from recparallel.errors import ConfigError, DataError

TABLE = pl.DataFrame(
    {
        "user": [7, 7, None, 8],
        "item": ["a", "b", "c", "d"],
        "timestamp": [datetime(2017, 7, 14, 2, 40, tzinfo=timezone.utc)] * 4,
        "stars": [4.5, float("nan"), 3.0, 1.0],
    }
)
EXPECTED = [("7", "a", 1_500_000_000_000, 4.5), ("8", "d", 1_500_000_000_000, 1.0)]
REASONS = [(2, "rating 'NaN' is not a number (Float32)"), (3, "user is empty")]


def check(log):
    assert [tuple(row.values()) for row in log.interactions.to_list()] == EXPECTED
    assert [(row.line, row.reason) for row in log.malformed.first] == REASONS


def test_parquet(tmp_path):
    TABLE.write_parquet(tmp_path / "log.parquet")
    check(load_log("parquet", tmp_path, max_malformed=0.5, options={"rating": "stars"}))


def test_parquet_takes_swapped_names(tmp_path):
    TABLE[:1].rename({"user": "item", "item": "user"}).write_parquet(tmp_path / "log.parquet")
    log = load_log("parquet", tmp_path, options={"user": "item", "item": "user"})
    assert [tuple(row.values()) for row in log.interactions.to_list()] == [("7", "a", 1_500_000_000_000, 1.0)]


def test_parquet_says_what_is_wrong(tmp_path):
    (tmp_path / "log.parquet").write_text("user,item\n")
    with pytest.raises(DataError, match=r"log\.parquet: not a Parquet file"):
        load_log("parquet", tmp_path)
    TABLE.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"no column 'uid'; the file has 'user', 'item', 'timestamp', 'stars'"):
        load_log("parquet", tmp_path, options={"user": "uid"})


def test_a_dataset_of_a_folder(tmp_path):
    (tmp_path / "set").mkdir()
    TABLE.write_parquet(tmp_path / "set" / "train.parquet")
    options = {"id": str(tmp_path / "set"), "rating": "stars"}
    check(load_log("hub", None, max_malformed=0.5, options=options))
    with pytest.raises(DataError, match="no history is left"):
        prepare("hub", None, folder=tmp_path / "to", max_malformed=0.5, options=options)


def test_a_dataset_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="'hub' needs the option id"):
        load_log("hub", None)
    with pytest.raises(DataError, match=r"nowhere.* cannot be loaded"):
        load_log("hub", None, options={"id": str(tmp_path / "nowhere")})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestamp_unit": "minutes"}, "timestamp_unit='minutes'; allowed are s, ms, us, ns, order"),
        ({"separator": "::"}, "separator='::' must be one character"),
        ({"encoding": "utf-16"}, "encoding='utf-16'; allowed are utf-8 and latin-1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        load_log("csv", None, options=options)


def test_timestamps_in_other_units(tmp_path):
    for unit, at in (("us", 1_500_000_000_000_000), ("ns", 1_500_000_000_000_000_000), ("order", 17)):
        (tmp_path / "log.csv").write_text(f"user,item,timestamp\nu,i,{at}\n")
        log = load_log("csv", tmp_path, options={"timestamp_unit": unit})
        assert log.interactions["timestamp"][:] == [17 if unit == "order" else 1_500_000_000_000]
        if unit != "order":
            with pytest.raises(DataError, match=r"between 1970 and 2100 \(in (micro|nano)seconds it is 2017-07-14\)"):
                load_log("csv", tmp_path)


def test_real_dates_may_be_early_and_labels_true_or_false(tmp_path):
    table = pl.DataFrame(
        {"user": ["u", "v"], "item": ["a", "b"], "timestamp": ["1972-01-01", "1950-01-01"], "click": [True, False]}
    )
    table.with_columns(pl.col("timestamp").str.to_date()).write_parquet(tmp_path / "log.parquet")
    log = load_log("parquet", tmp_path, options={"rating": "click"})
    assert log.interactions["timestamp"][:] == [730 * 86_400_000, -7305 * 86_400_000]
    assert log.interactions["rating"][:] == [1.0, 0.0]


def test_a_column_that_is_no_field_is_named_with_its_type(tmp_path):
    TABLE.with_columns(item=pl.Series([[1], [2], [3], [4]])).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(
        DataError, match=r"column 'item' is of type List\(Int64\); allowed are text, numbers, booleans, dates"
    ):
        load_log("parquet", tmp_path)


def test_a_file_of_items_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,timestamp\nu,i,1\n")
    with pytest.raises(DataError, match=r"missing: titels\.csv"):
        load_log("csv", tmp_path, options={"items_file": "titels.csv"})
    with pytest.raises(ConfigError, match="options title and genres name columns of items_file, which is not given"):
        load_log("csv", tmp_path, options={"title": "name", "genres": "kinds"})
    for pattern in ("", "/logs/*.csv"):
        with pytest.raises(ConfigError, match="are patterns within data_dir"):
            load_log("csv", tmp_path, options={"files": pattern})


def test_files_that_begin_with_a_dot_are_not_read(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,timestamp\nu,i,1\n")
    (tmp_path / "._log.csv").write_bytes(bytes(100))
    assert len(load_log("csv", tmp_path).interactions) == 1


def test_the_hub_takes_no_folder(tmp_path):
    with pytest.raises(DataError, match="takes no data_dir"):
        load_log("hub", tmp_path, options={"id": "owner/name"})


def test_atomic_files_without_times_have_no_order(tmp_path):
    (tmp_path / "x.train.inter").write_text("user_id:token\titem_id:token\nu\ta\n")
    (tmp_path / "x.test.inter").write_text("user_id:token\titem_id:token\nu\tb\n")
    with pytest.raises(DataError, match=r"x\.test\.inter, x\.train\.inter have no timestamps, or only some do"):
        prepare("recbole", tmp_path, folder=tmp_path / "to")


def test_a_category_may_begin_with_any_letter(tmp_path):
    (tmp_path / "magazines_5.json").write_text(
        '{"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1500000000}\n'
    )
    (tmp_path / "meta_magazines.json").write_text('{"asin": "B", "title": "Mag"}\n{"asin": "B", "title": "Other"}\n')
    log = load_log("amazon-2018", tmp_path)
    assert len(log.interactions) == 1
    prepared = prepare("amazon-2018", tmp_path, folder=tmp_path / "to", filters=Filters(min_user_events=1))
    assert prepared.items()["title"].to_list() == ["Mag"]
    assert prepared.manifest.report.repeated_items == 1
