"""The tracker keeps a run offline without a key, never asks for one, and logs what the events say."""

import os
import subprocess
import sys
from collections import namedtuple

import pytest

from recparallel import events
from recparallel.integrations import wandb as tracking
from recparallel.integrations.wandb import WandbTracker

Logged = namedtuple("Logged", "values step")


class Run:
    """Stands for W&B's run: remembers."""

    def __init__(self):
        self.logged, self.summary, self.finished = [], {}, 0

    def log(self, values, *, step):
        self.logged.append(Logged(values, step))

    def finish(self):
        self.finished += 1


@pytest.fixture
def started(monkeypatch):
    """Keyword arguments of every ``wandb.init``; the run it returns is a stand-in."""
    calls = []

    def init(**kwargs):
        calls.append(kwargs)
        return Run()

    monkeypatch.setattr(tracking.wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return calls


def test_a_step_is_logged_when_it_is_done(started, tmp_path):
    tracker = WandbTracker(tmp_path, config={})
    with events.subscribe(tracker):
        events.emit(events.Phase("forward", 0.25))
        events.emit(events.Exchange(0, "top_k", dense_bytes=400, wire_bytes=8, seconds=0.125))
        events.emit(events.Transfer("send", 1, 64, 0.5))
        assert tracker.run.logged == []
        events.emit(events.StepDone(1, 0.75, 2.0, 64))
        events.emit(events.StepDone(2, 0.5, 1.0, 64))
    assert tracker.run.logged == [
        ({"loss": 0.75, "sequences_per_s": 32.0}, 1),
        ({"loss": 0.5, "sequences_per_s": 64.0}, 2),
    ]


def test_how_gradients_are_exchanged_is_a_table(started, tmp_path):
    """All choices so far, with the next step that is done, once."""
    tracker = WandbTracker(tmp_path, config={})
    with events.subscribe(tracker):
        events.emit(events.ExchangeChoice(1000, "int8", (("none", 0.5), ("int8", 0.25))))
        events.emit(events.StepDone(1, 0.75, 2.0, 64))
        events.emit(events.StepDone(2, 0.5, 2.0, 64))
        events.emit(events.ExchangeLook(2000, "int8", 0.25, 1.0, decides_anew=True))
        events.emit(events.StepDone(3, 0.5, 2.0, 64))
    tables = [logged.values.get("exchange/choices") for logged in tracker.run.logged]
    first, second = [0, 1000, "int8", 0.25, None], [2, 2000, "int8", 0.25, 1.0]
    assert [table and table.data for table in tables] == [[first], None, [first, second]]


def test_what_a_step_cost_is_logged_by_rank(started, tmp_path):
    tracker = WandbTracker(tmp_path, config={})
    tracker.log_ranks([{"forward_s": 0.5, "boundary_sent_bytes": 64.0}, {"forward_s": 0.25}], step=3)
    assert tracker.run.logged == [
        ({"rank_0/forward_s": 0.5, "rank_0/boundary_sent_bytes": 64.0, "rank_1/forward_s": 0.25}, 3)
    ]


def test_metrics_a_table_and_a_summary_reach_the_run(started, tmp_path):
    tracker = WandbTracker(tmp_path, config={})
    tracker.log({"valid/HR@10": 0.5}, step=7)
    tracker.log_table("cut", ["stage", "first layer"], [[0, 0], [1, 3]])
    tracker.finish({"hr@10": 0.25})
    metrics, table = tracker.run.logged
    assert metrics == ({"valid/HR@10": 0.5}, 7)
    assert table.step == 0
    assert (table.values["cut"].columns, table.values["cut"].data) == (["stage", "first layer"], [[0, 0], [1, 3]])
    assert tracker.run.summary == {"hr@10": 0.25}
    assert tracker.run.finished == 1


def test_the_run_is_told_folder_project_and_config(started, tmp_path):
    folder = tmp_path / "a" / "b"
    WandbTracker(folder, config={"plan": 1}, project="mine")
    WandbTracker(folder, config={})
    assert folder.is_dir()
    assert (started[0]["dir"], started[0]["project"], started[0]["config"]) == (str(folder), "mine", {"plan": 1})
    assert started[1]["project"] == "recparallel"


# --- online or offline


@pytest.mark.parametrize("mode", ["offline", "online", "disabled", "dryrun"])
def test_the_mode_that_the_environment_asks_for_is_used_without_a_login(started, monkeypatch, tmp_path, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(tracking.wandb, "login", lambda **_: pytest.fail("looked for a key"))
    WandbTracker(tmp_path, config={})
    assert started[0]["mode"] == mode


@pytest.mark.parametrize("mode", [None, ""])
@pytest.mark.parametrize(("has_key", "expected"), [(True, "online"), (False, "offline")])
def test_without_a_mode_a_key_decides_and_nobody_is_asked(started, monkeypatch, tmp_path, mode, has_key, expected):
    if mode is None:
        monkeypatch.delenv("WANDB_MODE")
    else:
        monkeypatch.setenv("WANDB_MODE", mode)
    asked = []
    monkeypatch.setattr(tracking.wandb, "login", lambda **how: (asked.append(how), has_key)[1])
    WandbTracker(tmp_path, config={})
    assert started[0]["mode"] == expected
    assert asked == [{"prompt": False}]


PROGRAM = """
import sys
from pathlib import Path
from recparallel import events
from recparallel.integrations.wandb import WandbTracker

tracker = WandbTracker(Path(sys.argv[1]), config={"plan": {"pipeline": 2}})
tracker.log_table("cut", ["stage"], [[0], [1]])
with events.subscribe(tracker):
    for step in (1, 2):
        events.emit(events.StepDone(step, 1.0 / step, 2.0, 64))
        tracker.log_ranks([{"forward_s": 0.5}], step=step)
tracker.finish({"hr@10": 0.25})
print("done", tracker.run.settings.mode)
"""


def run(folder, **environment):
    """The real thing, in a home without a key and with nobody at the keyboard."""
    home = folder / "home"
    home.mkdir()
    keep = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "out")],
        env={**keep, "HOME": str(home), "NETRC": str(home / "netrc"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_a_key_a_real_run_is_kept_offline_and_nobody_is_asked(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done offline\n"
    assert "API key" not in done.stderr
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    (record,) = folder.glob("*.wandb")
    stored = record.read_bytes()  # W&B's own format; names and values stand in it as JSON
    for words in (b"loss", b"sequences_per_s", b"rank_0/forward_s", b"hr@10", b'{"pipeline":2}'):
        assert words in stored, words
    assert list(folder.rglob("*cut*.table.json"))


def test_a_disabled_real_run_writes_nothing(tmp_path):
    done = run(tmp_path, WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done disabled\n"
    assert not list((tmp_path / "out").rglob("*.wandb"))
