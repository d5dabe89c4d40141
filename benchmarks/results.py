"""The form of every result: rows of readings, ratios pair by pair, and bounds, in one JSON file a benchmark."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.cluster.description import explain
from benchmarks.environment import Environment
from recparallel.errors import ConfigError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Frozen):
    """One metric of one side.

    Attributes:
        workload, cluster, side, metric, unit: what was measured, where, and in what.
        median, min, max: over the runs.
        runs: number of runs.
    """

    workload: str
    cluster: str
    side: str
    metric: str
    unit: str
    median: float
    min: float
    max: float
    runs: int


class Ratio(_Frozen):
    """One side over another one, run by run: each run is divided by the other side's run of the same round.

    Attributes:
        workload, cluster, metric: what was measured, and where.
        side, against: numerator and denominator.
        median, min, max: over the rounds.
    """

    workload: str
    cluster: str
    side: str
    against: str
    metric: str
    median: float
    min: float
    max: float


class Bound(_Frozen):
    """What cannot be beaten.

    Attributes:
        workload, cluster, metric, unit: as in rows.
        name: ``compute``, ``network``, ``configured``, …
        value: in the metric's unit.
        basis: how it was worked out, and from which measurements.
        side: the side that it holds for; ``None`` is all of them.
    """

    workload: str
    cluster: str
    name: str
    metric: str
    unit: str
    value: float
    basis: str
    side: str | None = None


class Choice(_Frozen):
    """The setting at which a side was measured.

    Attributes:
        workload, cluster, side: whose.
        setting: in words.
    """

    workload: str
    cluster: str
    side: str
    setting: str


class Failure(_Frozen):
    """A side that did not run.

    Attributes:
        workload, cluster, side: which.
        reason: the first line of its error.
    """

    workload: str
    cluster: str
    side: str
    reason: str


class Results(BaseModel):
    """Everything that a benchmark found; the content of its JSON file."""

    model_config = ConfigDict(extra="forbid")

    benchmark: str
    environment: Environment
    rows: list[Row] = []
    ratios: list[Ratio] = []
    bounds: list[Bound] = []
    choices: list[Choice] = []
    failures: list[Failure] = []

    def save(self, path: Path) -> None:
        """Write the file as a whole, so that a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a file.

        Raises:
            ConfigError: it is missing or has another form.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except OSError as error:
            raise ConfigError(f"results file {path}: {error.strerror}") from None
        except ValidationError as error:
            raise ConfigError(explain(error, where=f"results file {path}")) from None

    def find(self, *, side: str, metric: str, workload: str, cluster: str) -> Row | None:
        """The row of one metric of one side, if it was measured."""
        wanted = (workload, cluster, side, metric)
        return next((row for row in self.rows if (row.workload, row.cluster, row.side, row.metric) == wanted), None)


def row_of(workload: str, cluster: str, side: str, metric: str, unit: str, values: Sequence[float]) -> Row:
    """Sum up readings (at least one) of one metric."""
    return Row(
        workload=workload,
        cluster=cluster,
        side=side,
        metric=metric,
        unit=unit,
        median=statistics.median(values),
        min=min(values),
        max=max(values),
        runs=len(values),
    )


def ratio_of(
    workload: str, cluster: str, metric: str, *, side: str, against: str, pairs: Sequence[tuple[float, float]]
) -> Ratio:
    """Divide run by run.

    Args:
        workload, cluster, metric: what was measured, and where.
        side, against: the names of numerator and denominator.
        pairs: the readings of both in the same round; at least one.

    Raises:
        ValueError: no pair, or a denominator is 0.
    """
    if not pairs:
        raise ValueError(f"no round holds both {side!r} and {against!r} for metric {metric!r}")
    if any(denominator == 0 for _, denominator in pairs):
        raise ValueError(f"side {against!r} has a reading of 0 for metric {metric!r}: no ratio")
    ratios = [numerator / denominator for numerator, denominator in pairs]
    return Ratio(
        workload=workload,
        cluster=cluster,
        side=side,
        against=against,
        metric=metric,
        median=statistics.median(ratios),
        min=min(ratios),
        max=max(ratios),
    )


def spread(control: Ratio) -> float:
    """How far one side strays from itself: the largest distance of the control's ratios from 1."""
    return max(abs(control.min - 1), abs(control.max - 1))


SMALLEST = 0.05
"""The least that a control can show: a few readings may agree by chance, so no wall time below 5 % is a finding."""


def noise(control: Ratio) -> float:
    """What two runs of the same side may differ by: the control's spread, and never less than :data:`SMALLEST`."""
    return max(spread(control), SMALLEST)


def exceeds_noise(ratio: Ratio, control: Ratio) -> bool:
    """Whether a claim may be made of ``ratio``: its median differs from 1 by more than the A/A control ever did."""
    return abs(ratio.median - 1) > spread(control)


def pairs_of(
    numerator: Mapping[int, Mapping[str, float]], denominator: Mapping[int, Mapping[str, float]], metric: str
) -> list[tuple[float, float]]:
    """The readings of two sides in the rounds that have both, in order of rounds.

    Args:
        numerator, denominator: metrics by round.
        metric: the one wanted.
    """
    rounds = sorted(set(numerator) & set(denominator))
    return [
        (numerator[n][metric], denominator[n][metric])
        for n in rounds
        if metric in numerator[n] and metric in denominator[n]
    ]
