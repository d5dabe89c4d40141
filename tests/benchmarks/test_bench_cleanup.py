"""Nothing stays after Ctrl-C, SIGTERM and SIGKILL, and the leftovers of the dead alone are removed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.cluster import Cluster, ClusterSpec, missing_rights, remove_leftovers
from benchmarks.cluster.cleanup import remains
from benchmarks.cluster.names import is_alive, new_name, owner_name

MISSING = missing_rights()
MODES = [
    pytest.param([], id="emulated", marks=pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))),
    pytest.param(["--local"], id="local"),
]


@contextmanager
def holder(mode: list[str]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A process that holds a cluster, and the name of its run; its ranks are running."""
    command = [sys.executable, "-m", "benchmarks.hold", "two_tier", *mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            name = process.stdout.readline().strip()
            assert owner_name(name) == name
            yield process, name
        finally:
            process.kill()


def _gone(name: str, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while remains(name) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not remains(name)


def _watchdogs(name: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"benchmarks.cluster.watchdog" in words and name.encode() in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_after_a_signal(mode: list[str], number: signal.Signals) -> None:
    with holder(mode) as (process, name):
        held = remains(name)
        kinds = {line.split()[0] for line in held}
        assert kinds == ({"process"} if mode else {"process", "CPU", "namespace"})
        assert len([line for line in held if line.startswith("process")]) >= 8
        process.send_signal(number)
        process.wait(timeout=30)
    assert _gone(name), remains(name)


@pytest.mark.parametrize("mode", MODES)
def test_the_next_start_removes_what_a_dead_run_and_its_watchdog_left_and_nothing_else(mode: list[str]) -> None:
    with holder(mode) as (alive, living), holder(mode) as (dead, name):
        for pid in _watchdogs(name):
            os.kill(pid, signal.SIGKILL)
        dead.kill()
        dead.wait(timeout=30)
        assert remains(name)
        untouched = remains(living)
        with Cluster(ClusterSpec(name="next", nodes=1), local=bool(mode)):
            assert not remains(name)
        assert remains(living) == untouched
        assert alive.poll() is None
    assert _gone(living)


def test_an_owner_is_known_by_its_start_and_not_by_its_number_alone() -> None:
    name = new_name()
    assert is_alive(name)
    match = re.fullmatch(r"(rpbench-\d+-)(\d+)(-\d+)", name)
    assert match is not None
    assert not is_alive(f"{match[1]}{int(match[2]) + 1}{match[3]}")
    assert not is_alive("rpbench-999999999-1-0")


@pytest.mark.parametrize(
    "name", ["rpbench", "rpbench-1", "rpbench-1-2-x", "other-1-2-3", "rpbench-1-2-3-r0-more", "docker"]
)
def test_names_of_others_are_never_ours(name: str) -> None:
    assert owner_name(name) is None
    assert not is_alive(name)


def test_names_differ_and_their_resources_are_told() -> None:
    one, two = new_name(), new_name()
    assert one != two
    assert owner_name(f"{one}-n3") == owner_name(f"{one}-sw") == owner_name(one) == one
    assert one not in remove_leftovers()
