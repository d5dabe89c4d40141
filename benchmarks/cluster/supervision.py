"""Watching the ranks of one run: their ends in order, their output, the changes that are due, time, and the first error."""

import re
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster.description import Change
from benchmarks.cluster.outcome import AppliedChange
from benchmarks.cluster.process import RankProcess

_POLL_SECONDS = 0.1
_MEMORY_SECONDS = 0.2
# Time for the others to fail by themselves, so that their own messages are in the logs; then SIGTERM; then SIGKILL.
_GRACE_SECONDS = 1.0
_TERM_SECONDS = 2.0
# What a rank says when another one went away: it is not the one to blame.
_CONSEQUENCE = re.compile(
    r"connection (was )?(reset|closed|refused)|closed by peer|broken pipe|recvbytes|failed to recv|no longer connected",
    re.I,
)


@dataclass
class Supervisor:
    """Waits for the ranks of one run.

    Args:
        processes: the ranks, started.
        progress: the file in which a rank reports its step.
        changes: what to do in mid-run.
        apply: makes a change; false where it cannot be made.
        timeout: seconds after which every rank is stopped, or ``None``.
        stop_on_failure: stop the other ranks when one fails.
        show: called with a rank and a line of its output.
    """

    processes: Sequence[RankProcess]
    progress: Path
    changes: Sequence[Change]
    apply: Callable[[Change], bool]
    timeout: float | None
    stop_on_failure: bool
    show: Callable[[int, str], None] | None
    applied: list[AppliedChange] = field(default_factory=list)
    failed: list[RankProcess] = field(default_factory=list)
    timed_out: bool = False

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._due = sorted(self.changes, key=lambda change: change.at_step)
        self._memory_at = 0.0
        self._killed: dict[int, Change] = {}

    def wait(self) -> None:
        """Return when every rank has ended, by itself or stopped."""
        give_up_at: float | None = None
        while any(process.running for process in self.processes):
            self._pause()
            self._collect()
            self._show()
            self._make_changes()
            if self._time_is_up():
                self.timed_out = True
                self._ask_for_stacks()
                break
            if self.failed and self.stop_on_failure:
                give_up_at = give_up_at or time.monotonic() + _GRACE_SECONDS
                if time.monotonic() >= give_up_at:
                    break
        self.stop()
        self._show(all_of_it=True)

    def stop(self) -> None:
        """End what still runs: SIGTERM, and SIGKILL after two seconds."""
        for process in self.processes:
            process.stopped |= process.running
            process.signal(signal.SIGTERM)
        self._wait_until_ended(_TERM_SECONDS)
        for process in self.processes:
            process.signal(signal.SIGKILL)
        self._wait_until_ended(10.0)

    def error(self) -> str | None:
        """What went wrong, the rank to blame first; ``None`` if nothing did."""
        parts = []
        if self.timed_out:
            late = [process.rank for process in self.processes if process.stopped]
            parts.append(
                f"no end within {self.timeout:g} s; still running: ranks {late}. Their stacks are in the logs."
            )
        # Sorting is stable: otherwise in the order of their ends.
        parts += [self._describe(process) for process in sorted(self.failed, key=self._is_consequence)]
        if self.timed_out and not self.failed:
            parts += [f"end of the output of rank {p.rank}:\n{p.tail()}" for p in self.processes if p.stopped][:1]
        return "\n\n".join(parts) or None

    def _describe(self, process: RankProcess) -> str:
        if process.rank in self._killed:
            return (
                f"rank {process.rank} was killed at step {self._killed[process.rank].at_step}, as the description asks"
            )
        assert process.exit_code is not None
        code = process.exit_code
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return f"rank {process.rank} failed: {how}. End of its output ({process.log}):\n{process.tail()}"

    def _is_consequence(self, process: RankProcess) -> bool:
        return process.rank not in self._killed and bool(_CONSEQUENCE.search(process.tail()))

    def _pause(self) -> None:
        """Sleep until a rank ends or something may be due. Woken at the end of each rank, so that ends are seen in order."""
        poll = select.poll()
        for process in self.processes:
            if process.running:
                poll.register(process.descriptor, select.POLLIN)
        poll.poll(_POLL_SECONDS * 1000)

    def _collect(self) -> None:
        for process in self.processes:
            if process.running:
                process.collect()
                if process.exit_code:
                    self.failed.append(process)
        if time.monotonic() >= self._memory_at:
            self._memory_at = time.monotonic() + _MEMORY_SECONDS
            for process in self.processes:
                if process.running:
                    process.look_at_memory()

    def _show(self, *, all_of_it: bool = False) -> None:
        if self.show:
            for process in self.processes:
                for line in process.fresh_lines(all_of_it=all_of_it):
                    self.show(process.rank, line)

    def _make_changes(self) -> None:
        if not self._due:
            return
        step = self._step()
        while self._due and step is not None and self._due[0].at_step <= step:
            change = self._due.pop(0)
            done = self._kill(change) if change.kill_rank is not None else self.apply(change)
            seconds = time.monotonic() - self._started
            self.applied.append(AppliedChange(str(change), change.at_step, step, seconds, done))

    def _kill(self, change: Change) -> bool:
        process = self.processes[change.kill_rank or 0]
        if not process.running:
            return False
        self._killed[process.rank] = change
        process.signal(signal.SIGKILL)
        return True

    def _step(self) -> int | None:
        try:
            return int(self.progress.read_text())
        except (OSError, ValueError):
            return None

    def _time_is_up(self) -> bool:
        return self.timeout is not None and time.monotonic() - self._started > self.timeout

    def _ask_for_stacks(self) -> None:
        for process in self.processes:
            process.stopped |= process.running
            process.signal(signal.SIGABRT)
        self._wait_until_ended(1.0)

    def _wait_until_ended(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(process.running for process in self.processes) and time.monotonic() < deadline:
            self._pause()
            for process in self.processes:
                process.collect()
