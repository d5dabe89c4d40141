"""From a reader's pieces to histories on disk, whatever the size of the log.

Steps, each of which holds one piece or one shard in memory, and the names of users and items:

1. Read: the reader's pieces go to disk as they come; events of each name are counted.
2. Number: names become numbers in their order (shorter first, equally long ones by code point: numeric ids in numeric
   order, whatever the order of the files), and rows go to the shard of their user. A shard has the users of one range.
3. Clean: each shard loses duplicates and is sorted by user, time, and file order.
4. Filter: users and items with too few events go, in turns, until none is left that has to.
5. Write: what is left is numbered without gaps, a row a user.

The same files and settings give the same bytes. The result lies in a folder named by a fingerprint of both, so that the
second time nothing is read.
"""

import glob
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from recparallel.caches import cache_folder
from recparallel.data.cleaning import CleaningReport, Filters
from recparallel.data.loading import make_reader
from recparallel.data.log import INTERACTIONS, ITEMS
from recparallel.data.malformed import Tally
from recparallel.data.prepared import ITEMS_FILE, MANIFEST, USERS_FILE, Manifest, Prepared
from recparallel.data.readers import Reader
from recparallel.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of what is written: it goes up when an older one would mislead a newer reader."""

SHARD_EVENTS = 4_000_000
"""Of a shard, where users permit: a row takes some 50 bytes while it is cleaned."""

_NAMED_USERS = 5
_ROW = {"user": pl.Int32(), "item": pl.Int32(), "timestamp": pl.Int64(), "rating": pl.Float32()}


def prepare(
    name: str,
    data_dir: str | Path | None,
    *,
    folder: Path | None = None,
    filters: Filters | None = None,
    max_malformed: float = 0.001,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    shard_events: int = SHARD_EVENTS,
    progress: bool = False,
) -> Prepared:
    """Make histories of a log, or find those made before.

    Args:
        name: a registered reader.
        data_dir: the folder with the files in their original format; None for a dataset that has none.
        folder: where results lie, each in a folder of its own; by default that of caches.
        filters: what is left out; by default users with fewer than three events.
        max_malformed: share of a file's rows that may be malformed.
        seed: for a generated dataset; others ignore it.
        options: of the reader.
        shard_events: events of a shard, about.
        progress: show bars.

    Raises:
        UnknownNameError: no reader has this name.
        ConfigError: a setting is out of range, or the reader has no such option.
        DataError: files are missing or cannot be read, too many rows are malformed, or nothing is left.
    """
    reader = make_reader(name, max_malformed=max_malformed, seed=seed, options=options)
    filters = filters or Filters()
    if filters.min_rating is None:
        filters = replace(filters, min_rating=reader.min_rating)
    root = folder or cache_folder("data")
    with tempfile.TemporaryDirectory() as scratch:
        source = reader.folder(None if data_dir is None else Path(data_dir), Path(scratch))
        conditions = {
            "format": FORMAT,
            "reader": [name, reader.version, reader.given],
            "source": reader.identity(source),
            "filters": asdict(filters),
            "max_malformed": max_malformed,
            "shard_events": shard_events,
        }
        fingerprint = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
        to = root / f"{name}-{fingerprint[:16]}"
        if not (to / MANIFEST).is_file():
            root.mkdir(parents=True, exist_ok=True)
            # All ranks of a machine come here at once: one prepares, the others find its result. A lock ends with its owner.
            with FileLock(root / f"{to.name}.lock"):
                if not (to / MANIFEST).is_file():
                    # A file system may not lock across machines: each has a place of its own, and who comes later finds it done.
                    host = f"{to.name}.{socket.gethostname()}"
                    for left in root.glob(f"{glob.escape(host)}.*.part"):  # of a run that was killed
                        shutil.rmtree(left, ignore_errors=True)
                    part = root / f"{host}.{os.getpid()}.part"
                    part.mkdir()
                    _Preparation(reader, source, part, filters, Tally(max_malformed), shard_events, progress).run(
                        fingerprint
                    )
                    _put(part, to)
    return Prepared.open(to)


def _put(part: Path, to: Path) -> None:
    try:
        part.rename(to)
    except OSError:
        if not (to / MANIFEST).is_file():
            raise
        shutil.rmtree(part)


def parse_options(pairs: Sequence[str], *, where: str) -> dict[str, str]:
    """Options of a reader, from ``name=value``.

    Raises:
        ConfigError: one has no name, or stands there twice.
    """
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or name in options:
            raise ConfigError(f"{where}: expected name=value, each name once, got {pair!r}")
        options[name] = value
    return options


class _Preparation:
    """One run of the steps."""

    def __init__(
        self,
        reader: Reader,
        source: Path,
        to: Path,
        filters: Filters,
        tally: Tally,
        shard_events: int,
        progress: bool,
    ) -> None:
        self.reader, self.source, self.to = reader, source, to
        self.filters, self.tally = filters, tally
        self.shard_events, self.progress = shard_events, progress
        self.report = CleaningReport()
        self.work = to / "work"
        self.work.mkdir()

    def run(self, fingerprint: str) -> None:
        users, items = self._read()
        users, num_shards = self._place(users)
        self._number(users, items)
        shards = self._clean(num_shards)
        keep_user, keep_item = self._filter(shards, len(users), len(items))
        new_user, new_item = _without_gaps(keep_user), _without_gaps(keep_item)
        kept_users = users.filter(pl.Series(keep_user))["name"]
        kept_items = items.filter(pl.Series(keep_item))["name"]
        if not len(kept_users):
            raise DataError(
                f"dataset {self.reader.name!r}: no history is left: none of its {len(users)} users has "
                f"{self.filters.min_user_events} events (min_user_events)"
                + (f" of items with {self.filters.min_item_events}" if self.filters.min_item_events > 1 else "")
            )
        kept_users.to_frame().write_parquet(self.to / USERS_FILE)
        self._write_items(kept_items)
        counts = self._write_histories(shards, new_user, new_item + 1)
        self.report.rows, self.report.malformed = self.tally.report.num_rows, self.tally.report.num_malformed
        self.report.malformed_first = [str(row) for row in self.tally.report.first]
        manifest = Manifest(
            dataset=self.reader.name,
            fingerprint=fingerprint,
            timed=self.reader.timed,
            num_users=len(kept_users),
            num_items=len(kept_items),
            num_interactions=sum(counts),
            shards=len(counts),
            filters=asdict(self.filters),
            report=self.report,
        )
        shutil.rmtree(self.work)
        (self.to / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        for words, count in self.report.lines():
            logger.warning("%s: %s: %s", self.reader.name, words, f"{count:,}")

    def _read(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Step 1. Returns the names of users and of items in order, with the events of each."""
        users, items = _Counts(), _Counts()
        with self._bar("read", "row") as bar:
            for number, piece in enumerate(self.reader.interactions(self.source, self.tally)):
                table = piece.select(list(INTERACTIONS))
                bar.update(table.height)
                if self.filters.min_rating is not None:
                    above = table.filter(pl.col("rating") >= self.filters.min_rating)
                    self.report.below_min_rating += table.height - above.height
                    table = above
                users.add(table["user"])
                items.add(table["item"])
                table.write_parquet(self._piece(number), compression="lz4")
        if not users.num_events:
            why = (
                f": all are rated below {self.filters.min_rating:g} (min_rating)"
                if self.report.below_min_rating
                else ""
            )
            raise DataError(f"dataset {self.reader.name!r}: no interaction is left{why or ': the files hold none'}")
        return users.in_order(), items.in_order()

    def _place(self, users: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        """Add each user's ``shard``, -1 for those with too many events."""
        overlong = users.filter(pl.col("events") > self.filters.max_user_events)
        if overlong.height:
            self.report.overlong_users = overlong.height
            self.report.overlong_names = overlong["name"].head(_NAMED_USERS).to_list()
            self.report.overlong_events = int(overlong["events"].sum())
            if overlong.height == users.height:
                raise DataError(
                    f"dataset {self.reader.name!r}: all of its {users.height} users, {overlong['name'][0]!r} first, have more "
                    f"than {self.filters.max_user_events:,} events (max_user_events); is this the column of users?"
                )
        events = pl.when(pl.col("events") <= self.filters.max_user_events).then("events").otherwise(0)
        before = events.cum_sum() - events
        placed = users.with_columns(
            shard=pl.when(events > 0).then(before // self.shard_events).otherwise(-1).cast(pl.Int32)
        )
        return placed, int(placed["shard"].max()) + 1  # type: ignore[arg-type]

    def _number(self, users: pl.DataFrame, items: pl.DataFrame) -> None:
        """Step 2."""
        numbers = {
            "user": users.with_row_index("number").select("name", pl.col("number").cast(pl.Int32), "shard"),
            "item": items.with_row_index("number").select("name", pl.col("number").cast(pl.Int32)),
        }
        part = 0
        waiting: list[pl.DataFrame] = []
        pieces = sorted(self.work.glob("piece-*"))
        for number, piece in enumerate(self._each(pieces, "number", "piece")):
            table = pl.read_parquet(piece, memory_map=False)
            piece.unlink()
            table = table.join(numbers["user"], left_on="user", right_on="name", how="left", maintain_order="left")
            table = table.drop("user").rename({"number": "user"}).filter(pl.col("shard") >= 0)
            table = table.join(numbers["item"], left_on="item", right_on="name", how="left", maintain_order="left")
            waiting.append(table.drop("item").rename({"number": "item"}).select(*_ROW, "shard"))
            if sum(map(len, waiting)) >= self.shard_events or number == len(pieces) - 1:
                for key, rows in pl.concat(waiting).partition_by("shard", as_dict=True, maintain_order=True).items():
                    (to := self._shard(int(key[0]))).mkdir(exist_ok=True)
                    rows.drop("shard").write_parquet(to / f"{part:08}.parquet", compression="lz4")
                part, waiting = part + 1, []

    def _clean(self, num_shards: int) -> list[Path]:
        """Step 3. Returns the shards that have rows."""
        cleaned = []
        for shard in self._each(range(num_shards), "clean", "shard"):
            folder = self._shard(shard)
            if not folder.is_dir():  # one user has filled several
                continue
            table = pl.concat([pl.read_parquet(path, memory_map=False) for path in sorted(folder.iterdir())])
            shutil.rmtree(folder)
            rows = table.unique(maintain_order=True)
            self.report.duplicates += table.height - rows.height
            late = rows.select((pl.col("timestamp") < pl.col("timestamp").cum_max().over("user")).sum()).item()
            self.report.out_of_order += int(late)
            path = folder.with_suffix(".parquet")
            rows.sort("user", "timestamp", maintain_order=True).write_parquet(path, compression="lz4")
            cleaned.append(path)
        return cleaned

    def _filter(
        self, shards: list[Path], num_users: int, num_items: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Step 4. Returns which users and which items are left."""
        keep_user, keep_item = np.ones(num_users, dtype=bool), np.ones(num_items, dtype=bool)
        while True:
            user_events, item_events = np.zeros(num_users, dtype=np.int64), np.zeros(num_items, dtype=np.int64)
            for user, item in _pairs(shards):
                kept = keep_user[user] & keep_item[item]
                user_events += np.bincount(user[kept], minlength=num_users)
                item_events += np.bincount(item[kept], minlength=num_items)
            rare = keep_item & (item_events < self.filters.min_item_events) & (item_events > 0)
            if rare.any():
                self.report.rare_items += int(rare.sum())
                self.report.rare_events += int(item_events[rare].sum())
                keep_item &= ~rare
                continue
            short = keep_user & (user_events < self.filters.min_user_events) & (user_events > 0)
            if not short.any():
                return user_events > 0, item_events > 0
            self.report.short_users += int(short.sum())
            self.report.short_events += int(user_events[short].sum())
            keep_user &= ~short

    def _write_items(self, names: pl.Series) -> None:
        """What the items that are left are called."""
        there = pl.DataFrame({"item": names}).with_row_index("number")
        pieces = [
            piece.select(list(ITEMS)).join(there, on="item", how="inner")
            for piece in self.reader.items(self.source, self.tally)
        ]
        schema = {**ITEMS, "number": there.schema["number"]}
        described = pl.concat([pl.DataFrame(schema=schema), *pieces])
        named = described.unique("number", keep="first", maintain_order=True)
        self.report.repeated_items = described.height - named.height
        self.report.untitled_items = there.height - named.height if pieces else 0
        table = there.join(named.drop("item"), on="number", how="left", maintain_order="left")
        title = pl.when(pl.col("title").is_null() | (pl.col("title") == "")).then("item").otherwise("title")
        table = table.with_columns(title=title, genres=pl.col("genres").fill_null([]))
        table.select(list(ITEMS)).write_parquet(self.to / ITEMS_FILE)

    def _write_histories(self, shards: list[Path], new_user: NDArray[Any], new_item: NDArray[Any]) -> list[int]:
        """Step 5. Returns the events of each shard that is written."""
        counts: list[int] = []
        for path in self._each(shards, "write", "shard"):
            table = pl.read_parquet(path, memory_map=False)
            renumbered = {"user": new_user[table["user"].to_numpy()], "item": new_item[table["item"].to_numpy()]}
            table = table.with_columns(**{name: pl.Series(numbers) for name, numbers in renumbered.items()})
            table = table.filter((pl.col("user") >= 0) & (pl.col("item") > 0))
            path.unlink()
            if not table.height:
                continue
            to = self.to / Prepared.shard_name(len(counts))
            with pyarrow.OSFile(str(to), "wb") as file:
                rows = _by_user(table)
                with pyarrow.ipc.new_stream(file, rows.schema) as stream:
                    stream.write_batch(rows)
            counts.append(table.height)
        return counts

    def _piece(self, number: int) -> Path:
        return self.work / f"piece-{number:08}.parquet"

    def _shard(self, number: int) -> Path:
        return self.work / f"shard-{number:08}"

    def _bar(self, what: str, unit: str) -> Any:
        return tqdm(desc=f"{self.reader.name}: {what}", unit=unit, unit_scale=True, disable=not self.progress)

    def _each(self, things: Iterable[Any], what: str, unit: str) -> Any:
        return tqdm(things, desc=f"{self.reader.name}: {what}", unit=unit, disable=not self.progress)


class _Counts:
    """Events of each name, added up piece by piece."""

    def __init__(self) -> None:
        self.num_events = 0
        self._table = pl.DataFrame(schema={"name": pl.String, "events": pl.Int64})
        self._new: list[pl.DataFrame] = []

    def add(self, names: pl.Series) -> None:
        self.num_events += len(names)
        self._new.append(names.alias("name").to_frame().group_by("name").agg(pl.len().cast(pl.Int64).alias("events")))
        if sum(map(len, self._new)) > max(1_000_000, self._table.height):
            self._merge()

    def in_order(self) -> pl.DataFrame:
        """Columns ``name`` and ``events``, shorter names first and equally long ones by code point."""
        self._merge()
        return self._table.sort(pl.col("name").str.len_chars(), pl.col("name"))

    def _merge(self) -> None:
        self._table = pl.concat([self._table, *self._new]).group_by("name").agg(pl.col("events").sum())
        self._new = []


def _pairs(shards: list[Path]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    for path in shards:
        table = pl.read_parquet(path, columns=["user", "item"], memory_map=False)
        yield table["user"].to_numpy(), table["item"].to_numpy()


def _without_gaps(keep: NDArray[np.bool_]) -> NDArray[np.int32]:
    """New numbers, from 0; negative for what is not kept."""
    return np.where(keep, np.cumsum(keep) - 1, -2).astype(np.int32)


def _by_user(table: pl.DataFrame) -> pyarrow.RecordBatch:
    """A row a user, from rows that are sorted by user: lists of items, timestamps and ratings."""
    users, first = np.unique(table["user"].to_numpy(), return_index=True)
    offsets = pyarrow.array(np.append(first, table.height).astype(np.int32))
    columns = {"user": pyarrow.array(users.astype(np.int64))}
    for name, lists in (("item", "items"), ("timestamp", "timestamps"), ("rating", "ratings")):
        columns[lists] = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(table[name].to_numpy()))
    return pyarrow.record_batch(columns)
