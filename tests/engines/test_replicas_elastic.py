"""Replicas that come and go: processes of their own, which are killed and started in the middle of a training."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, environment
from replicas_training import PLAIN, Apart, algorithm, assert_close, weights_of

from recparallel.config import parse_config
from recparallel.engines.replica_binding import make_mode
from recparallel.engines.replica_membership import host_meeting_point
from recparallel.errors import ConfigError

PROGRAM = ROOT / "tests" / "elastic_program.py"
MODES: dict[str, dict[str, Any]] = {
    "local_sgd": {"mode": "local_sgd", "local_steps": 4},
    "diloco": {"mode": "diloco", "local_steps": 4, "compression": "int8"},
    "bounded_staleness": {"mode": "bounded_staleness", "local_steps": 4, "staleness": 1},
}


@pytest.mark.parametrize(
    ("mode", "stages"),
    [
        ({"mode": "local_sgd", "local_steps": [[0, 1], [2, 2]]}, 1),
        ({"mode": "local_sgd", "local_steps": 4}, 2),
        ({"mode": "diloco", "local_steps": 3}, 2),
    ],
)
def test_where_nobody_comes_or_goes_it_is_the_same_algorithm(pools, mode, stages):
    """Also with a round that the end cuts short."""
    store = host_meeting_point(0)
    elastic = {"endpoint": f"127.0.0.1:{store.port}", "least": 2}
    run = replace(PLAIN, stages=stages, steps=7, deepspeed={})
    apart = Apart(run, {**mode, "replicas": 2, "elastic": elastic}, launches=2)
    assert_close(weights_of(pools[2 * stages], apart), algorithm(run, mode, worlds=2))


class Meeting:
    """A meeting point, and the replicas that were started at it."""

    def __init__(self, folder: Path, mode: dict[str, Any]) -> None:
        self._folder, self._store = folder, host_meeting_point(0)
        elastic = {"endpoint": f"127.0.0.1:{self._store.port}", "last_call_s": 2.0, "heartbeat_s": 1}
        self.mode = {"replicas": 2, "timeout_s": 60.0, **mode, "elastic": {**elastic, **mode.get("elastic", {})}}
        self._running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, **told: Any) -> None:
        out = self._folder / name
        out.mkdir()
        given = {"mode": self.mode, "out": str(out), **told}
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

    def send(self, name: str, number: signal.Signals) -> None:
        self._running[name].send_signal(number)

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


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, id=name, marks=[pytest.mark.slow] * (name != "bounded_staleness"))
        for name, mode in MODES.items()
    ],
)
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


@pytest.mark.slow
def test_one_that_hangs_is_left_behind_and_comes_back(meet):
    steps, meeting = 80, meet({**MODES["local_sgd"], "timeout_s": 8.0})
    for name in ("stays", "hangs"):
        meeting.start(name, steps=steps, seconds=0.2)
    meeting.wait_for("hangs", "step", count=10)
    meeting.send("hangs", signal.SIGSTOP)
    meeting.wait_for("stays", "formed 1")
    meeting.send("hangs", signal.SIGCONT)
    meeting.wait_for("stays", "formed 2", count=2)
    stays, hangs = meeting.found("stays"), meeting.found("hangs")
    assert stays["weights"] == hangs["weights"]
    assert stays["progress"] == hangs["progress"] >= steps
    assert stays["dealt"] - stays["landed"] <= 2  # it came back with what it had learned


@pytest.mark.slow
def test_all_find_out_that_one_is_killed(meet):
    """Also those who are not its neighbours in a ring, whose connections are whole: long before an exchange times out."""
    names, meeting = ["a", "b", "c", "dies"], meet({**MODES["local_sgd"], "replicas": 4, "timeout_s": 300.0})
    for name in names:
        meeting.start(name, steps=40, seconds=0.15)
    for name in names:
        meeting.wait_for(name, "formed 4", seconds=120)
    meeting.wait_for("a", "step", count=8)
    meeting.kill("dies")
    for name in names[:3]:
        meeting.wait_for(name, "formed 3")  # for less than an exchange would take to time out
    found = [meeting.found(name) for name in names[:3]]
    assert all(one["weights"] == found[0]["weights"] for one in found)


@pytest.mark.slow
def test_who_has_just_come_does_not_begin_a_training_anew(meet):
    meeting = meet(MODES["local_sgd"])
    for name in ("first", "second"):
        meeting.start(name, steps=400, seconds=0.1)
    meeting.wait_for("first", "formed 2", count=1)
    meeting.wait_for("first", "step", count=10)
    meeting.kill("second")
    meeting.wait_for("first", "formed 1")
    meeting.kill("first")
    meeting.start("new", steps=20)
    assert meeting.end("new") != 0
    assert "of the 1 replicas that are there none was in it: resume it, or give another `run`" in meeting.log("new")


@pytest.mark.slow
def test_one_that_is_not_like_the_others_is_not_let_in(meet):
    meeting = meet(MODES["local_sgd"])
    meeting.start("stays", steps=40, seconds=0.2)
    meeting.wait_for("stays", "step", count=4)
    meeting.start("odd", steps=40, mode={**meeting.mode, "local_steps": 5})
    assert meeting.end("odd") != 0
    assert "this replica is not like the others: it has" in meeting.log("odd")
    assert meeting.found("stays")["progress"] >= 40
    meeting.start("late", steps=40)
    assert meeting.end("late") != 0
    assert "the training 'training'" in meeting.log("late")
    assert "is over" in meeting.log("late")


@pytest.mark.slow
def test_nobody_at_the_meeting_point_and_too_few(meet):
    lost = meet({**MODES["local_sgd"], "timeout_s": 3.0, "elastic": {"endpoint": "127.0.0.1:9"}})
    few = meet({**MODES["local_sgd"], "timeout_s": 3.0, "elastic": {"least": 2}})
    for meeting in (lost, few):
        meeting.start("alone", steps=4)
    assert lost.end("alone") != 0
    assert few.end("alone") != 0
    assert "cannot reach the meeting point in time (recparallel.data_parallel.timeout_s is 3 s" in lost.log("alone")
    assert "127.0.0.1:9" in lost.log("alone")
    assert "finds too few others in time (recparallel.data_parallel.timeout_s is 3 s" in few.log("alone")


ELASTIC = {"endpoint": "somewhere:29400"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mode": "local_sgd", "elastic": ELASTIC}, "elastic without replicas"),
        ({"mode": "local_sgd", "replicas": 2, "elastic": {"endpoint": "somewhere"}}, "endpoint"),
        ({"mode": "local_sgd", "replicas": 2, "elastic": {"endpoint": "somewhere:99999"}}, "endpoint"),
        ({"mode": "local_sgd", "replicas": 2, "elastic": {**ELASTIC, "least": 3}}, "least is 3, of at most 2"),
        ({"mode": "local_sgd", "replicas": 2, "elastic": {**ELASTIC, "heartbeat_s": 0}}, "heartbeat_s"),
        ({"mode": "local_sgd", "replicas": 2, "elastic": ELASTIC, "gate": {}}, "gate beside elastic"),
        ({"elastic": ELASTIC}, "elastic beside mode 'synchronous'"),
        ({"mode": "delayed", "replicas": 2, "elastic": ELASTIC}, "mode 'delayed' with exchanges that land later"),
        ({"mode": "diloco", "replicas": 2, "elastic": ELASTIC, "fragments": 2}, "by fragments"),
        (
            {"mode": "bounded_staleness", "replicas": 2, "elastic": ELASTIC, "local_steps": [4, 2]},
            "numbers of replicas that come and go change",
        ),
    ],
)
def test_settings_that_cannot_run(section, message):
    with pytest.raises(ConfigError, match=message):
        make_mode(parse_config({"recparallel": {"data_parallel": section}}).data_parallel, replicas=2)
