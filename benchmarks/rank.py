"""What a measured process calls: report a step, take a reading, hand back a report. Light: the standard library only.

Outside an emulated cluster every call still works; nobody listens then.

Example:
    >>> from benchmarks import rank
    >>> for step in range(3):
    ...     rank.report_step(step)
    ...     if step == 1:
    ...         start = rank.read()  # the first steps are warm-up
    >>> used = rank.read() - start
    >>> rank.write_report({"seconds": used.seconds, "cpu_seconds": used.cpu_seconds, "sent_bytes": used.sent_bytes})
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRESS = "BENCH_PROGRESS"
"""Environment variable: the file that holds the step reached; any rank may write it, rank 0 does in :func:`report_step`."""

REPORT = "BENCH_REPORT"
"""Environment variable: the JSON file that this rank may write; it comes back as ``RankResult.report``."""

USAGE = "BENCH_CPU_USAGE"
"""Environment variable: the CPU usage file of this rank's control group; empty where there is none."""

CORES = "BENCH_CORES"
"""Environment variable: the cores that this rank may use, at the start of the run; empty without a limit."""


@dataclass(frozen=True)
class Reading:
    """Counters of this rank at a moment, or, as a difference, what came between two moments.

    Attributes:
        seconds: wall time.
        cpu_seconds: CPU time of the rank with all its threads and children, from its control group where it has one.
        sent_bytes, received_bytes: over its node's link, headers included and shared by the ranks of the node; ``None``
            where processes are not emulated.
        loopback_bytes: between ranks of its node; ``None`` likewise.
    """

    seconds: float
    cpu_seconds: float
    sent_bytes: int | None
    received_bytes: int | None
    loopback_bytes: int | None

    def __sub__(self, earlier: "Reading") -> "Reading":
        return Reading(
            self.seconds - earlier.seconds,
            self.cpu_seconds - earlier.cpu_seconds,
            _minus(self.sent_bytes, earlier.sent_bytes),
            _minus(self.received_bytes, earlier.received_bytes),
            _minus(self.loopback_bytes, earlier.loopback_bytes),
        )


def report_step(step: int) -> None:
    """Say that ``step`` has been reached, so that changes planned for it are made. Rank 0's word counts; others may call too."""
    path = os.environ.get(PROGRESS)
    if path and os.environ.get("RANK", "0") == "0":
        # Replaced as a whole: the reader must never see half a number.
        fresh = Path(f"{path}.new")
        fresh.write_text(f"{step}\n")
        fresh.replace(path)


def write_report(report: Mapping[str, Any]) -> None:
    """Hand back a JSON object: ``RankResult.report`` of this rank."""
    path = os.environ.get(REPORT)
    if path:
        Path(path).write_text(json.dumps(dict(report)))


def read() -> Reading:
    """A reading now; subtract an earlier one."""
    sent, received, loopback = _interface_bytes()
    usage = os.environ.get(USAGE)
    cpu_seconds = read_usage(Path(usage)) if usage else time.process_time()
    return Reading(time.monotonic(), cpu_seconds, sent, received, loopback)


def cores() -> float | None:
    """The limit of this rank's CPU time, in cores, as the run began; ``None`` without one."""
    limit = os.environ.get(CORES)
    return float(limit) if limit else None


def read_usage(path: Path) -> float:
    """CPU seconds in the usage file of a control group: version 1 tells nanoseconds, version 2 lines of names and numbers."""
    content = path.read_text()
    if content.strip().isdigit():
        return int(content) / 1e9
    return int(dict(line.split() for line in content.splitlines())["usage_usec"]) / 1e6


def _interface_bytes() -> tuple[int | None, int | None, int | None]:
    if not os.environ.get(USAGE):
        return None, None, None
    link, loopback = os.environ.get("GLOO_SOCKET_IFNAME", ""), None
    sent = received = None
    for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name.strip() == link:
            received, sent = int(fields[0]), int(fields[8])
        elif name.strip() == "lo":
            loopback = int(fields[8])
    return sent, received, loopback


def _minus(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier
