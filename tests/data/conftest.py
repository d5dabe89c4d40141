"""Real logs, where there are any, and small ones made on the spot."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recparallel.data.preparation import prepare
from recparallel.data.prepared import Prepared

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


@pytest.fixture
def prepare_rows(tmp_path, monkeypatch) -> Callable[..., Prepared]:
    """Prepare a log of ``(user, item, timestamp)`` rows; all ratings are 1 unless a row has a fourth entry."""

    def make(rows: list[tuple], **kwargs: Any) -> Prepared:
        (folder := tmp_path / f"log-{len(list(tmp_path.iterdir()))}").mkdir()
        lines = ["\t".join(map(str, (*row, 1.0)[:4])) for row in rows]
        (folder / "log.csv").write_text("user\titem\ttimestamp\trating\n" + "\n".join(lines))
        options = {"separator": "\t", "rating": "rating", "timestamp_unit": "order"} | kwargs.pop("options", {})
        return prepare("csv", folder, folder=tmp_path / "prepared", options=options, **kwargs)

    return make
