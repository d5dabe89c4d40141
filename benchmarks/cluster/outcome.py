"""What comes back from a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.errors import RunError


@dataclass(frozen=True)
class RankResult:
    """One rank's run, from its start to its end.

    Attributes:
        rank, node: its numbers.
        exit_code: 0 is success; ``-n`` means killed by signal ``n``.
        stopped: whether it was stopped because another rank failed or time ran out.
        wall_seconds: from the start of the run to the rank's end.
        cpu_seconds: CPU time of the rank with threads and children; from its control group where emulated.
        cpu_limit: cores that the description gives it, or ``None``.
        sent_bytes, received_bytes: over the link, from the interface counters, headers included. Ranks of one node
            share its link: each gets an equal part. ``None`` where not emulated.
        peak_memory_bytes: largest resident memory of the rank's main process, read every 0.2 s; ``None`` if it ended
            sooner.
        report: what the rank handed back by :func:`benchmarks.rank.write_report`.
        log: the file with its output.
    """

    rank: int
    node: int
    exit_code: int
    stopped: bool
    wall_seconds: float
    cpu_seconds: float
    cpu_limit: float | None
    sent_bytes: float | None
    received_bytes: float | None
    peak_memory_bytes: int | None
    report: dict[str, Any]
    log: Path

    @property
    def busy_share(self) -> float | None:
        """CPU seconds over those that its limit allowed; ``None`` without a limit."""
        return None if self.cpu_limit is None else self.cpu_seconds / (self.cpu_limit * self.wall_seconds)


@dataclass(frozen=True)
class NodeResult:
    """Bytes at one node during the run: over its link, and between its own ranks. ``None`` where not emulated."""

    node: int
    sent_bytes: int | None
    received_bytes: int | None
    loopback_bytes: int | None


@dataclass(frozen=True)
class AppliedChange:
    """A change in mid-run that was made (or could not be: then ``applied`` is false).

    Attributes:
        what: the change, in words.
        at_step: the step that it was planned for.
        seen_step: the step that had been reported when it was made.
        seconds: after the start of the run.
        applied: false for limits of plain local processes, which have none.
    """

    what: str
    at_step: int
    seen_step: int
    seconds: float
    applied: bool


@dataclass(frozen=True)
class RunResult:
    """One command on all ranks.

    Attributes:
        cluster: the cluster's name.
        emulated: false for plain local processes: then no limit was in force, and no bytes were counted.
        ranks, nodes: by number.
        wall_seconds: from the first start to the last end.
        changes: those made, in order of time.
        background_cores: cores that anything else on the machine used on average meanwhile, the kernel's work for the
            links among it (0.1 to 0.3 here). Much more than that spoils a measurement.
        error: ``None``, or what went wrong, the first rank to fail first.
        logs: the folder with ``rank<n>.log``; where none was given, a successful run's goes with the cluster.
    """

    cluster: str
    emulated: bool
    ranks: tuple[RankResult, ...]
    nodes: tuple[NodeResult, ...]
    wall_seconds: float
    changes: tuple[AppliedChange, ...]
    background_cores: float
    logs: Path
    error: str | None = field(default=None)

    @property
    def ok(self) -> bool:
        """Whether every rank ended with exit code 0, in time."""
        return self.error is None

    def check(self) -> "RunResult":
        """The result itself, if all went well.

        Raises:
            RunError: a rank failed or was killed, or time ran out.
        """
        if self.error is not None:
            raise RunError(self.error)
        return self

    @property
    def reports(self) -> list[dict[str, Any]]:
        """Every rank's report, in the order of ranks."""
        return [rank.report for rank in self.ranks]
