"""Sides that take turns: A B C A' A B C A' …, so that drift of the machine meets all of them, with an A/A control.

The control is one side run a second time in every round, as if it were another one. How far it strays from itself is
the noise; a ratio inside that is no finding.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.output import console
from benchmarks.readings import Readings
from benchmarks.results import Ratio, Row, exceeds_noise, pairs_of, ratio_of, row_of, spread

Measure = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        rows: each metric of each side.
        ratios: each side against the base, metric by metric, the control among them.
        control: the control's name among the sides.
    """

    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    control: str

    def ratio(self, side: str, metric: str) -> Ratio:
        """The ratio of ``side`` to the base.

        Raises:
            KeyError: it was not measured.
        """
        for ratio in self.ratios:
            if (ratio.side, ratio.metric) == (side, metric):
                return ratio
        raise KeyError((side, metric))

    def noise(self, metric: str) -> float:
        """The control's largest distance from 1."""
        return spread(self.ratio(self.control, metric))

    def is_finding(self, side: str, metric: str) -> bool:
        """Whether ``side`` differs from the base by more than the noise."""
        return exceeds_noise(self.ratio(side, metric), self.ratio(self.control, metric))


def control_name(base: str) -> str:
    """What the second run of ``base`` in each round is called."""
    return f"{base} (control)"


def interleave(
    sides: Mapping[str, Measure],
    *,
    base: str,
    rounds: int,
    workload: str,
    cluster: str,
    units: Mapping[str, str],
    readings: Readings,
    seconds_per_run: float,
) -> Comparison:
    """Run every side once a round, and the base twice.

    Args:
        sides: by name, what runs it once and returns its metrics.
        base: the side that the others are divided by.
        rounds: number of rounds.
        workload, cluster: names, for the rows.
        units: the unit of each metric.
        readings: where runs are kept; those it holds already are not made again.
        seconds_per_run: what one run is expected to take; only for the announcement.

    Raises:
        ValueError: ``base`` is no side, or there is no round.
    """
    if base not in sides:
        raise ValueError(f"base: given {base!r}; allowed are {', '.join(sides)}")
    if rounds < 1:
        raise ValueError(f"rounds: given {rounds}; needs at least 1")
    everyone = {**sides, control_name(base): sides[base]}
    missing = [
        (number, side)
        for number in range(rounds)
        for side in everyone
        if not readings.has(workload, cluster, side, number)
    ]
    announce(f"{workload} on {cluster}", runs=len(missing), seconds_per_run=seconds_per_run)
    for number, side in missing:
        started = time.monotonic()
        readings.add(workload, cluster, side, number, everyone[side]())
        console.print(f"  round {number + 1} of {rounds}, {side}: {time.monotonic() - started:.1f} s", markup=False)
    return compare(list(everyone), base=base, workload=workload, cluster=cluster, units=units, readings=readings)


def compare(
    sides: Sequence[str], *, base: str, workload: str, cluster: str, units: Mapping[str, str], readings: Readings
) -> Comparison:
    """Rows of all sides and their ratios to the base, from readings alone. A metric that a side lacks gives it no row."""
    by_round = {side: readings.by_round(workload, cluster, side) for side in sides}
    rows, ratios = [], []
    for side in sides:
        for metric, unit in units.items():
            values = [metrics[metric] for _, metrics in sorted(by_round[side].items()) if metric in metrics]
            if values:
                rows.append(row_of(workload, cluster, side, metric, unit, values))
            pairs = pairs_of(by_round[side], by_round[base], metric)
            if side != base and pairs and all(denominator for _, denominator in pairs):
                ratios.append(ratio_of(workload, cluster, metric, side=side, against=base, pairs=pairs))
    return Comparison(tuple(rows), tuple(ratios), control_name(base))


def announce(what: str, *, runs: int, seconds_per_run: float) -> None:
    """Say how long it will take before it begins."""
    minutes = runs * seconds_per_run / 60
    console.print(f"{what}: {runs} runs, expected duration {minutes:.1f} minutes", markup=False)
