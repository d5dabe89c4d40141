"""Real logs, where there are any, and small ones made on the spot."""

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from recparallel.data.log import InteractionLog
from recparallel.data.malformed import MalformedReport

_DEFAULT = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The folder of a real dataset under ``$RECPARALLEL_DATA``; skips the test if it is not there."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("RECPARALLEL_DATA", _DEFAULT)) / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there; set RECPARALLEL_DATA to a folder that holds {name}")
        return folder

    return find


@pytest.fixture(scope="session")
def make_log() -> Callable[..., InteractionLog]:
    """Build a log from ``(user, item, timestamp)`` rows; all ratings are 1 unless a row has a fourth entry."""

    def make(rows: list[tuple]) -> InteractionLog:
        table = pl.DataFrame(
            [(*row, 1.0)[:4] for row in rows],
            schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64, "rating": pl.Float32},
            orient="row",
        )
        items = pl.DataFrame(schema={"item": pl.String, "title": pl.String, "genres": pl.List(pl.String)})
        return InteractionLog.from_tables("made", interactions=table, items=items, malformed=MalformedReport())

    return make
