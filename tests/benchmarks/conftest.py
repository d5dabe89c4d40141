"""Fixtures for the benchmarks' tests: the repository on the path, real clusters where the rights are there."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
for place in (ROOT / "plugin", ROOT):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))


@pytest.fixture(autouse=True)
def _children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ranks and helpers are processes of their own; they import the same tree, and put their logs under the test's folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "plugin")]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def emulation() -> None:
    """Skip where a cluster cannot be emulated, and say why."""
    from benchmarks.cluster import missing_rights

    if missing := missing_rights():
        pytest.skip("; ".join(missing))
