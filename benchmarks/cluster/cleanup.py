"""Removing what a run made: processes, CPU groups, namespaces. Links and bridges live in the namespaces and go with
them.

Three callers: the run itself at its end, its watchdog when the run was killed, and the next start for whatever both
left. All may overlap, so that something already gone is never an error.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.cluster.cpu import find_cgroups
from benchmarks.cluster.names import MARK, is_alive, owner_name

NAMESPACES = Path("/run/netns")


def remove_leftovers() -> list[str]:
    """Remove what runs left behind whose owner is dead; touch nothing else.

    Returns:
        The names of the runs that were removed.
    """
    dead = sorted(name for name in all_names() if not is_alive(name))
    for name in dead:
        remove(name)
    return dead


def all_names() -> set[str]:
    """The runs of which anything exists on this machine: a namespace, a CPU group or a process."""
    names = {owner_name(path.name) for path in [*_entries(NAMESPACES), *_cgroups()]}
    return {name for name in {*names, *(owner_name(mark) for _, mark in _marked())} if name}


def remains(name: str) -> list[str]:
    """What exists of the run ``name``, in words; empty when it left nothing."""
    found = [f"process {pid}" for pid in _processes(name)]
    found += [f"CPU group {path}" for path in _cgroups() if owner_name(path.name) == name]
    return found + [f"namespace {path.name}" for path in _entries(NAMESPACES) if owner_name(path.name) == name]


def remove(name: str, *, patience: float = 10.0) -> None:
    """Kill the processes of the run ``name``, then remove its CPU groups and namespaces.

    Args:
        name: the run's name.
        patience: seconds to wait for killed processes to go.
    """
    kill_processes(name, patience=patience)
    for path in _cgroups():
        if owner_name(path.name) == name:
            _remove_cgroup(path, patience=patience)
    for path in _entries(NAMESPACES):
        if owner_name(path.name) == name:
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)


def kill_processes(name: str, *, patience: float = 10.0) -> None:
    """Send SIGKILL to every process of the run until none is left, or ``patience`` seconds have passed."""
    deadline = time.monotonic() + patience
    # Again and again: a process may start another one while we look.
    while pids := _processes(name):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)


def _processes(name: str) -> list[int]:
    """Ranks and their descendants, found by their environment and, if they dropped that, by their CPU group."""
    pids = {pid for pid, mark in _marked() if mark == name}
    for path in _cgroups():
        if owner_name(path.name) == name:
            with contextlib.suppress(OSError):
                pids.update(int(line) for line in (path / "cgroup.procs").read_text().split())
    return sorted(pids - {os.getpid()})


def _marked() -> Iterator[tuple[int, str]]:
    needle = f"{MARK}=".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if needle in content:
            for entry in content.split(b"\0"):
                if entry.startswith(needle):
                    yield int(path.parent.name), entry[len(needle) :].decode(errors="replace")


def _cgroups() -> Iterable[Path]:
    groups = find_cgroups()
    return [path for root in groups.roots for path in _entries(root)] if groups else []


def _entries(folder: Path) -> list[Path]:
    """What carries one of our names and is ours to remove: a user without rights leaves alone what root made."""
    try:
        return [path for path in folder.iterdir() if owner_name(path.name) and _is_ours(path)]
    except OSError:
        return []


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.geteuid() in (0, path.stat().st_uid)
    return False


def _remove_cgroup(path: Path, *, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            # The kernel says "busy" until the last killed process has really gone.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
