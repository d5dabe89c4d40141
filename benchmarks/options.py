"""What the command line hands to a benchmark."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.description import ClusterSpec


@dataclass(frozen=True)
class Options:
    """Choices that every benchmark takes.

    Attributes:
        quick: end within 3 minutes: fewer rounds, smaller cases.
        json: the file for the results; ``None`` writes none.
        clusters: those chosen; empty means the benchmark's own choice.
        workloads: names of those chosen; empty means the benchmark's own choice.
        sides: names of those to compare with the base, in place of the benchmark's own; such a run is not published.
        local: plain local processes instead of emulated nodes.
        fresh: measure everything again, also what an interrupted run has left.
        rounds: rounds of all sides; ``None`` means the benchmark's own choice.
        peer: the checkout of another project, for a benchmark that trains beside it.
        command: the command line, for the record.
    """

    quick: bool = False
    json: Path | None = None
    clusters: tuple[ClusterSpec, ...] = ()
    workloads: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    local: bool = False
    fresh: bool = False
    rounds: int | None = None
    peer: Path | None = None
    command: str = ""
