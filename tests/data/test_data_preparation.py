import gzip
import json
import multiprocessing
import random
import socket
from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recparallel.data.cleaning import Filters
from recparallel.data.preparation import prepare
from recparallel.data.prepared import MANIFEST, Prepared
from recparallel.errors import ConfigError, DataError


def named(prepared):
    """User name to the names of its items: what the numbers mean."""
    histories = prepared.histories()
    return {
        user: [histories.item_names[item] for item in sequence]
        for user, sequence in zip(histories.user_names, histories.sequences)
    }


def test_order_is_time_then_file(prepare_rows):
    rows = [("u", "c", 5), ("v", "z", 1), ("u", "b", 3), ("u", "a", 5), ("v", "a", 1), ("v", "m", 0), ("u", "x", 5)]
    prepared = prepare_rows(rows)
    assert named(prepared) == {"u": ["b", "c", "a", "x"], "v": ["m", "z", "a"]}
    assert prepared.manifest.report.out_of_order == 2


def test_numbers_follow_the_names_and_zero_is_padding(prepare_rows):
    rows = [("10", "100", 0), ("10", "9", 1), ("10", "20", 2), ("9", "9", 0), ("9", "100", 1), ("9", "20", 2)]
    histories = prepare_rows(rows).histories()
    assert list(histories.user_names) == ["9", "10"]
    assert histories.item_names == ["", "9", "20", "100"]
    assert (histories.num_users, histories.num_items) == (2, 3)
    assert [sequence.tolist() for sequence in histories.sequences] == [[1, 3, 2], [3, 1, 2]]


def test_numbers_do_not_depend_on_the_order_of_the_file(prepare_rows):
    rows = [(user, item, i) for user in "ab" for i, item in enumerate("zyx")]
    one, other = prepare_rows(rows), prepare_rows(rows[::-1])
    assert one.folder != other.folder
    assert [path.read_bytes() for path in one.shards] == [path.read_bytes() for path in other.shards]
    assert named(one) == named(other)


def test_exact_duplicates_are_dropped_but_repeats_are_kept(prepare_rows, caplog):
    rows = [("u", "a", 1), ("u", "a", 1), ("u", "a", 2), ("u", "b", 3), ("u", "a", 1, 5.0)]
    prepared = prepare_rows(rows)
    assert named(prepared) == {"u": ["a", "a", "a", "b"]}
    assert prepared.manifest.report.duplicates == 1
    assert "exact duplicates, left out: 1" in caplog.text


def test_short_users_are_dropped_with_the_items_that_only_they_had(prepare_rows, caplog):
    rows = [("u", "a", 0), ("u", "b", 1), ("u", "c", 2), ("v", "d", 0), ("v", "a", 1)]
    prepared = prepare_rows(rows)
    assert named(prepared) == {"u": ["a", "b", "c"]}
    assert prepared.histories().item_names == ["", "a", "b", "c"]
    assert (prepared.manifest.report.short_users, prepared.manifest.report.short_events) == (1, 2)
    assert "events of 1 short users, left out: 2" in caplog.text
    assert named(prepare_rows(rows, filters=Filters(min_user_events=2))) == {"u": ["a", "b", "c"], "v": ["d", "a"]}


def test_users_with_one_event(prepare_rows):
    rows = [("u", "a", 0), ("v", "b", 1)]
    assert named(prepare_rows(rows, filters=Filters(min_user_events=1))) == {"u": ["a"], "v": ["b"]}
    with pytest.raises(DataError, match=r"no history is left: none of its 2 users has 3 events \(min_user_events\)"):
        prepare_rows(rows)


def test_duplicates_do_not_help_a_user_to_stay(prepare_rows):
    with pytest.raises(DataError, match=r"none of its 1 users has 3 events"):
        prepare_rows([("u", "a", 0), ("u", "b", 1), ("u", "b", 1)])


def test_rare_items_may_make_users_short(prepare_rows):
    rows = [("u", item, 0) for item in "abc"] + [("v", item, 0) for item in "abd"] + [("w", item, 0) for item in "abe"]
    prepared = prepare_rows(rows, filters=Filters(min_user_events=2, min_item_events=2))
    assert named(prepared) == {"u": ["a", "b"], "v": ["a", "b"], "w": ["a", "b"]}
    assert prepared.manifest.report.rare_items == 3
    with pytest.raises(DataError, match=r"3 events \(min_user_events\) of items with 2"):
        prepare_rows(rows, filters=Filters(min_user_events=3, min_item_events=2))


def test_overlong_users_are_dropped_and_named(prepare_rows, caplog):
    rows = [("bot", str(i), i) for i in range(50)] + [("u", str(i), i) for i in range(10)]
    prepared = prepare_rows(rows, filters=Filters(max_user_events=20))
    assert list(named(prepared)) == ["u"]
    report = prepared.manifest.report
    assert (report.overlong_users, report.overlong_names, report.overlong_events) == (1, ["bot"], 50)
    assert "1 overlong users (first bot), left out: 50" in caplog.text
    with pytest.raises(DataError, match=r"all of its 2 users, 'u' first.*is this the column of users"):
        prepare_rows(rows, filters=Filters(max_user_events=5))


def test_low_ratings_are_no_interactions(prepare_rows):
    rows = [("u", str(i), i, i) for i in range(10)]
    prepared = prepare_rows(rows, filters=Filters(min_rating=4))
    assert named(prepared) == {"u": list("456789")}
    assert prepared.manifest.report.below_min_rating == 4
    with pytest.raises(DataError, match=r"all are rated below 11 \(min_rating\)"):
        prepare_rows(rows, filters=Filters(min_rating=11))


@pytest.mark.parametrize(
    "wrong", [{"min_user_events": 0}, {"min_item_events": 0}, {"max_user_events": 2}, {"min_rating": float("nan")}]
)
def test_filters_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Filters(**wrong)


def test_the_second_time_nothing_is_read(prepare_rows, tmp_path):
    rows = [("u", item, 0) for item in "abc"]
    prepared = prepare_rows(rows)
    before = (prepared.folder / MANIFEST).stat().st_mtime_ns
    (log,) = [path for path in tmp_path.iterdir() if path.name.startswith("log-")]
    options = {"separator": "\t", "rating": "rating", "timestamp_unit": "order"}
    again = prepare("csv", log, folder=tmp_path / "prepared", options=options)
    assert again.folder == prepared.folder
    assert (again.folder / MANIFEST).stat().st_mtime_ns == before
    (log / "log.csv").write_text((log / "log.csv").read_text().replace("u\ta", "u\tz"))
    changed = prepare("csv", log, folder=tmp_path / "prepared", options=options)
    assert changed.folder != prepared.folder
    assert named(changed) == {"u": ["z", "b", "c"]}
    other = prepare("csv", log, folder=tmp_path / "prepared", options=options, filters=Filters(min_user_events=2))
    assert other.folder not in (prepared.folder, changed.folder)


def test_what_a_killed_run_left_is_in_nobodys_way(prepare_rows, tmp_path):
    rows = [("u", item, 0) for item in "abc"]
    prepared = prepare_rows(rows)
    part = prepared.folder.with_name(f"{prepared.folder.name}.{socket.gethostname()}.1.part")
    prepared.folder.rename(part)  # as if it had been killed before the end
    (log,) = [path for path in tmp_path.iterdir() if path.name.startswith("log-")]
    options = {"separator": "\t", "rating": "rating", "timestamp_unit": "order"}
    assert named(prepare("csv", log, folder=tmp_path / "prepared", options=options)) == {"u": ["a", "b", "c"]}
    assert not part.exists()


def _prepare_in_a_process(log, folder, queue):
    prepared = prepare("csv", log, folder=folder, options={"timestamp_unit": "order"})
    queue.put((str(prepared.folder), (prepared.folder / MANIFEST).stat().st_mtime_ns))


def test_processes_that_come_at_once_share_one_preparation(tmp_path):
    random.seed(0)
    lines = [f"{random.randrange(500)},{random.randrange(90)},{i}" for i in range(30_000)]
    (tmp_path / "log.csv").write_text("user,item,timestamp\n" + "\n".join(lines))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (tmp_path, tmp_path / "prepared", queue)
    processes = [context.Process(target=_prepare_in_a_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    results = {queue.get(timeout=120) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(results) == 1


def test_a_damaged_result_is_named(prepare_rows):
    prepared = prepare_rows([("u", item, 0) for item in "abc"])
    prepared.shards[0].write_bytes(prepared.shards[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"histories-00000\.arrow: damaged"):
        Prepared.open(prepared.folder).histories()
    prepared.shards[0].unlink()
    with pytest.raises(DataError, match=r"lacks histories-00000\.arrow"):
        Prepared.open(prepared.folder).histories()
    (prepared.folder / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        Prepared.open(prepared.folder)


@settings(deadline=None, max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 12), st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=150
    ),
    filters=st.builds(
        Filters,
        min_user_events=st.integers(1, 4),
        min_item_events=st.integers(1, 4),
        max_user_events=st.integers(10, 30),
        min_rating=st.sampled_from([None, 1.0]),
    ),
    shard_events=st.sampled_from([1, 7, 10_000]),
)
def test_any_log_is_what_a_plain_program_makes_of_it(prepare_rows, rows, filters, shard_events):
    expected = _plainly(rows, filters)
    if not expected:
        with pytest.raises(DataError):
            prepare_rows(rows, filters=filters, shard_events=shard_events)
        return
    prepared = prepare_rows(rows, filters=filters, shard_events=shard_events)
    assert named(prepared) == expected
    assert prepared.manifest.num_interactions == sum(map(len, expected.values()))
    report = prepared.manifest.report
    left_out = report.below_min_rating + report.overlong_events + report.duplicates + report.short_events
    assert len(rows) == prepared.manifest.num_interactions + left_out + report.rare_events
    # By the library, and with what it needs alone.
    table = prepared.dataset()
    assert [len(items) for items in table["items"]] == [len(at) for at in table["timestamps"]]
    assert table["items"][:] == [items.tolist() for items in prepared.histories().sequences]


def _plainly(rows, filters):
    rows = [row for row in rows if filters.min_rating is None or row[3] >= filters.min_rating]
    events = defaultdict(int)
    for user, *_ in rows:
        events[user] += 1
    rows = [row for row in dict.fromkeys(rows) if events[row[0]] <= filters.max_user_events]
    before = None
    while before != len(rows):
        before = len(rows)
        for column, least in ((1, filters.min_item_events), (0, filters.min_user_events)):
            counts = defaultdict(int)
            for row in rows:
                counts[row[column]] += 1
            rows = [row for row in rows if counts[row[column]] >= least]
    histories = defaultdict(list)
    for user, item, at, _ in sorted(rows, key=lambda row: (row[0], row[2])):
        histories[str(user)].append((at, str(item)))
    return {user: [item for _, item in events] for user, events in histories.items()}


def test_titles_of_what_is_left(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,timestamp\n" + "\n".join(f"u,{item},0" for item in "cab"))
    (tmp_path / "titles.csv").write_text('item,title,genres\nb,"Bee, a film",X|Y\nz,Unseen,\na,,\n')
    options = {"items_file": "titles.csv", "genres": "genres", "timestamp_unit": "order"}
    prepared = prepare("csv", tmp_path, folder=tmp_path / "to", options=options)
    assert prepared.items().rows() == [("a", "a", []), ("b", "Bee, a film", ["X", "Y"]), ("c", "c", [])]
    assert prepared.manifest.report.untitled_items == 1


def test_a_real_file_of_sequences_comes_back_as_it_was(real_data, tmp_path):
    folder = real_data("ml-1m")
    prepared = prepare("sequences", folder, folder=tmp_path, shard_events=300_000)
    assert prepared.manifest.shards == 4
    lines = [line.split() for line in (folder / "sequences.txt").read_text().splitlines()]
    assert named(prepared) == {user: items for user, *items in lines}
    assert prepared.histories().timestamps is None
    assert prepared.items()["title"][0] == "Toy Story (1995)"


def test_a_real_log_with_times(real_data, tmp_path):
    prepared = prepare("movielens-100k", real_data("ml-100k"), folder=tmp_path)
    manifest = prepared.manifest
    assert (manifest.num_users, manifest.num_items, manifest.num_interactions) == (943, 1682, 100_000)
    assert manifest.report.malformed == 0
    times = prepared.histories().timestamps
    assert all((np.diff(at) >= 0).all() for at in times)
    first = pl.from_epoch(pl.Series([int(times[0][0])]), time_unit="ms").dt.year()[0]
    assert first == 1997
    json.loads((prepared.folder / MANIFEST).read_text())


def test_compressed_files_are_read_as_they_are(tmp_path):
    lines = [json.dumps({"user": "u", "item": item, "timestamp": 1_500_000_000}) for item in "abc"]
    (tmp_path / "log.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert named(prepare("jsonl", tmp_path, folder=tmp_path / "to")) == {"u": ["a", "b", "c"]}
