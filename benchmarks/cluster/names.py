"""Names of what a run owns: they carry the owner's process number and start time, so that a dead owner can be told.

A name reads ``rpbench-<pid>-<start>-<serial>``; each namespace and CPU group appends ``-n0``, ``-r3`` and the like, and
each rank carries the name in its environment.
"""

import itertools
import os
import re
from pathlib import Path

PREFIX = "rpbench"
MARK = "RPBENCH_OWNER"
"""The environment variable by which a rank, and whatever it starts, is known as ours."""

_NAME = re.compile(rf"({PREFIX}-(\d+)-(\d+)-\d+)(?:-\w+)?")
_serials = itertools.count()


def new_name() -> str:
    """A name that no other run on this machine has."""
    return f"{PREFIX}-{os.getpid()}-{_start_time(os.getpid())}-{next(_serials)}"


def owner_name(text: str) -> str | None:
    """The run's name in the name of one of its resources, or ``None`` where it is not one of ours."""
    match = _NAME.fullmatch(text)
    return match.group(1) if match else None


def is_alive(name: str) -> bool:
    """Whether the process that owns ``name`` still runs (the same process, not another one with its number)."""
    match = _NAME.fullmatch(name)
    return match is not None and _start_time(int(match.group(2))) == int(match.group(3))


def _start_time(pid: int) -> int | None:
    """Start of a process in clock ticks after boot; ``None`` where it is gone or has ended and only waits to be collected."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name stands in brackets and may hold spaces and brackets itself.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])
