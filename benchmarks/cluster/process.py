"""One rank as a process: start it, follow its output, wait for it, stop it."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TAIL_BYTES = 4000


@dataclass
class RankProcess:
    """A started rank.

    Attributes:
        rank: its number.
        popen: the process; it leads a session of its own, so that Ctrl-C reaches the run alone and the run stops the
            ranks.
        log, report_file: its files.
        started: on the monotonic clock, seconds.
        exit_code, ended: set when it has ended.
        stopped: whether the run stopped it.
        used_seconds: CPU time of the process and the children that it waited for, as the kernel told at its end.
        peak_memory_bytes: largest resident memory seen.
    """

    rank: int
    popen: "subprocess.Popen[bytes]"
    log: Path
    report_file: Path
    started: float
    exit_code: int | None = None
    ended: float | None = None
    stopped: bool = False
    used_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    shown_bytes: int = 0
    descriptor: int = field(default=-1)

    @classmethod
    def start(
        cls,
        rank: int,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path | None,
        log: Path,
        report_file: Path,
    ) -> "RankProcess":
        """Start ``command``; its output goes straight to the file, so that a slow reader never holds it up."""
        with log.open("wb") as output:
            popen = subprocess.Popen(
                list(command),
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = cls(rank, popen, log, report_file, time.monotonic())
        process.descriptor = os.pidfd_open(popen.pid)
        return process

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.exit_code is None

    def collect(self) -> None:
        """Take its exit code if it has ended."""
        if not self.running:
            return
        pid, status, usage = os.wait4(self.popen.pid, os.WNOHANG)
        if pid:
            self.exit_code = self.popen.returncode = os.waitstatus_to_exitcode(status)
            self.ended = time.monotonic()
            self.used_seconds = usage.ru_utime + usage.ru_stime
            os.close(self.descriptor)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the rank and whatever it started."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, number)

    def look_at_memory(self) -> None:
        """Read its peak so far. The last value counts: a program that replaced another one starts anew."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_memory_bytes = int(line.split()[1]) * 1024

    def fresh_lines(self, *, all_of_it: bool = False) -> list[str]:
        """Whole lines of output since the last call; with ``all_of_it`` an unfinished last line too."""
        with self.log.open("rb") as file:
            file.seek(self.shown_bytes)
            text = file.read()
        if not all_of_it:
            text = text[: text.rfind(b"\n") + 1]
        self.shown_bytes += len(text)
        return text.decode(errors="replace").splitlines()

    def tail(self) -> str:
        """The end of its output."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def report(self) -> dict[str, Any]:
        """What it handed back, or nothing."""
        try:
            content = json.loads(self.report_file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
