"""Replicas that come and go: processes of their own, which are killed and started in the middle of a training."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, environment

from recparallel.engines.replica_membership import host_meeting_point

PROGRAM = ROOT / "tests" / "elastic_program.py"
MODES: dict[str, dict[str, Any]] = {
    "local_sgd": {"mode": "local_sgd", "local_steps": 4},
    "diloco": {"mode": "diloco", "local_steps": 4, "compression": "int8"},
    "bounded_staleness": {"mode": "bounded_staleness", "local_steps": 4, "staleness": 1},
}


class Meeting:
    """A meeting point, and the replicas that were started at it."""

    def __init__(self, folder: Path, mode: dict[str, Any]) -> None:
        self._folder, self._store = folder, host_meeting_point(0)
        elastic = {"endpoint": f"127.0.0.1:{self._store.port}", "last_call_s": 2.0, "heartbeat_s": 1}
        self._mode = {"replicas": 2, "timeout_s": 60.0, **mode, "elastic": {**elastic, **mode.get("elastic", {})}}
        self._running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, **told: Any) -> None:
        out = self._folder / name
        out.mkdir()
        given = {"mode": self._mode, "out": str(out), **told}
        with (out / "log").open("w") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, str(PROGRAM), json.dumps(given)],
                cwd=ROOT,
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def wait_for(self, name: str, line: str, *, count: int = 1, seconds: float = 90.0) -> None:
        """Until it has written ``count`` lines that begin so."""
        path, end = self._folder / name / "steps", time.monotonic() + seconds
        while sum(own.startswith(line) for own in (path.read_text().splitlines() if path.exists() else [])) < count:
            assert self._running[name].poll() is None, self.log(name)
            assert time.monotonic() < end, f"{name} has not written {line!r} {count} times: {self.log(name)}"
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        self._running[name].kill()
        self._running[name].wait()

    def end(self, name: str, seconds: float = 120.0) -> int:
        return self._running[name].wait(timeout=seconds)

    def found(self, name: str) -> dict[str, Any]:
        assert self.end(name) == 0, self.log(name)
        found: dict[str, Any] = json.loads((self._folder / name / "found.json").read_text())
        return found

    def log(self, name: str) -> str:
        return (self._folder / name / "log").read_text()[-6000:]

    def close(self) -> None:
        for process in self._running.values():
            process.kill()


@pytest.fixture
def meet(tmp_path: Path) -> Iterator[Any]:
    made: list[Meeting] = []

    def make(mode: dict[str, Any]) -> Meeting:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Meeting(folder, mode))
        return made[-1]

    yield make
    for meeting in made:
        meeting.close()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_one_is_killed_and_another_comes(meet, mode, tmp_path):
    steps, meeting = 60, meet(mode)
    for name in ("stays", "dies"):
        meeting.start(name, steps=steps, seconds=0.15)
    meeting.wait_for("dies", "step", count=14)
    meeting.kill("dies")
    meeting.wait_for("stays", "formed 1")
    meeting.start("comes", steps=steps, seconds=0.15)
    meeting.wait_for("stays", "formed 2", count=2)
    stays, comes = meeting.found("stays"), meeting.found("comes")

    assert [count for _, count in stays["formed"]] == [2, 1, 2]
    assert [count for _, count in comes["formed"]] == [2]
    assert stays["weights"] == comes["weights"]
    assert stays["progress"] == comes["progress"] >= steps
    assert 0 < comes["began"] <= comes["formed"][0][0]
    assert comes["learning_rate"] == stays["learning_rate"]
    assert comes["losses"][0] < stays["losses"][0] - 0.2  # it begins with what the others have learned
    # What is dealt out and never followed: what the dead one had not handed in, and, of each of both, a part that it has not begun.
    rounds = 1 + mode.get("staleness", 0)
    assert stays["dealt"] - stays["landed"] <= 4 * rounds + 1 + 2

    again = meet({**mode, "elastic": {"run": "again"}})
    again.start("resumed", steps=steps + 20, resume=str(tmp_path / "0" / "stays" / "checkpoints"))
    again.start("new", steps=steps + 20)
    resumed, new = again.found("resumed"), again.found("new")
    assert resumed["began"] == stays["progress"]
    assert resumed["weights"] == new["weights"]
    assert resumed["progress"] == new["progress"] >= steps + 20
    assert new["losses"][0] < stays["losses"][0] - 0.2
