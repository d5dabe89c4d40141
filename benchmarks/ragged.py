"""``python -m benchmarks ragged``: histories of different lengths, in rows of one length, as long as the longest, and packed.

Real histories (MovieLens-1M, at most 200 items), one process on all cores and a pipeline of four on an emulated cluster. Each way
trains at its best micro-batch; a step has as many histories on average. Engines of all ways take turns in one run, each round in
another order; two of them have rows of one length, and others are compared with the mean of these two.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from benchmarks.cluster import Cluster, ClusterSpec
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension, extension_environment, remove_stale_lock
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.partition import KEEP_MEMORY
from benchmarks.ragged_rank import Order, Way, windows_of
from benchmarks.results import Results, noise, ratio_of, row_of
from benchmarks.study_tables import markdown_table, write_between_markers
from benchmarks.workloads import get_workload
from recparallel.config import RecParallelConfig
from recparallel.engines.loading import rows_per_epoch

DOCUMENT = Path("docs") / "guide.md"
COLUMNS = ("on", "lengths", "step of", "histories/s", "targets/s", "padding", "against fixed")
WAYS = ("fixed", "dynamic", "packed")
CONTROL = "fixed (control)"
"""The second engine with rows of one length; its ratio to the first is the noise."""

_WORKLOAD = "ragged"
_COUNTS, _COUNTS_OF_STAGES = (1, 2, 4, 8), (4, 8, 16)
"""Micro-batches of a step that are tried, in one process and in a pipeline."""

_ROUNDS, _STEPS, _TIMEOUT = 6, 3, 900.0
_ONE = ClusterSpec(name="one_process", nodes=1)


@dataclass(frozen=True)
class Turn:
    """What a way did in one turn, or in several: seconds, histories, targets, and positions of its rows."""

    seconds: float
    histories: float
    targets: float
    positions: float

    @property
    def padding(self) -> float:
        """Share of the positions without a target."""
        return 1 - self.targets / self.positions


def run(options: Options) -> int:
    """Measure, and print.

    Returns:
        0; 1 without the data.
    """
    missing = get_workload(_WORKLOAD).missing()
    if missing is not None:
        console.print(missing)
        return 1
    compile_extension()
    remove_stale_lock()
    results = Results(benchmark="ragged", environment=capture_environment(options.command, emulated=not options.local))
    lines: list[tuple[str, ...]] = []
    for spec in options.clusters or (_ONE, CLUSTERS["flat"]):
        chosen = {lengths: _best(spec, lengths, options) for lengths in WAYS}
        turns = _turns(
            spec, [*chosen.values(), chosen["fixed"]], options, rounds=options.rounds or _ROUNDS, steps=_STEPS
        )
        found = dict(zip((*WAYS, CONTROL), turns))
        _record(results, spec.name, found)
        lines += lines_of(results, spec.name, chosen, found)
        print_lines(COLUMNS, lines)
    if options.json:
        results.save(options.json)
        if not options.quick and options.json.resolve().parent == DOCUMENT.parent.resolve() / "results":
            write_between_markers(DOCUMENT, markdown_table(COLUMNS, lines), name="ragged")
    return 0


def rows_of_a_step(lengths: str) -> int:
    """So many that they hold the workload's global batch of histories, on average."""
    workload = get_workload(_WORKLOAD)
    windows = windows_of(_WORKLOAD)
    rows = rows_per_epoch(windows, RecParallelConfig.model_validate({"lengths": lengths}), max_length=workload.length)
    return round(workload.global_batch * rows / len(windows))


def lines_of(
    results: Results, cluster: str, chosen: Mapping[str, Way], found: Mapping[str, Sequence[Turn]]
) -> list[tuple[str, ...]]:
    """A line for each way."""
    ratios = {ratio.side: ratio for ratio in results.ratios if ratio.cluster == cluster}
    lines: list[tuple[str, ...]] = []
    for name, turns in found.items():
        way = chosen.get(name, chosen["fixed"])
        ratio = ratios.get(name)
        against = "1" if ratio is None else f"{ratio.median:.2f} ({ratio.min:.2f}–{ratio.max:.2f})"
        if ratio is not None and name != CONTROL and abs(ratio.median - 1) <= noise(ratios[CONTROL]):
            against += ", within noise"
        lines.append(
            (
                cluster,
                name,
                f"{way.count} × {way.rows} rows",
                f"{median(turn.histories / turn.seconds for turn in turns):.1f}",
                f"{median(turn.targets / turn.seconds for turn in turns):,.0f}",
                f"{median(turn.padding for turn in turns):.1%}",
                against,
            )
        )
    return lines


def _record(results: Results, cluster: str, found: Mapping[str, Sequence[Turn]]) -> None:
    for name, turns in found.items():
        for metric, unit, values in (
            ("sequences_per_second", "1/s", [turn.histories / turn.seconds for turn in turns]),
            ("targets_per_second", "1/s", _rates(turns)),
            ("padding", "", [turn.padding for turn in turns]),
        ):
            results.rows.append(row_of(_WORKLOAD, cluster, name, metric, unit, values))
        if name != "fixed":
            against = _rates(found["fixed"]) if name == CONTROL else list(map(mean, zip(*map(_rates, _both(found)))))
            results.ratios.append(
                ratio_of(
                    _WORKLOAD,
                    cluster,
                    "targets_per_second",
                    side=name,
                    against="fixed",
                    pairs=list(zip(_rates(turns), against)),
                )
            )


def _both(found: Mapping[str, Sequence[Turn]]) -> tuple[Sequence[Turn], Sequence[Turn]]:
    return found["fixed"], found[CONTROL]


def _rates(turns: Sequence[Turn]) -> list[float]:
    return [turn.targets / turn.seconds for turn in turns]


def _best(spec: ClusterSpec, lengths: str, options: Options) -> Way:
    """The setting with the most targets a second, by two turns each."""
    rows = rows_of_a_step(lengths)
    counts = _COUNTS if spec.nodes * spec.ranks_per_node == 1 else _COUNTS_OF_STAGES
    ways = [Way(lengths, max(1, round(rows / count)), count) for count in counts[: 2 if options.quick else None]]
    turns = _turns(spec, ways, options, rounds=2, steps=2)
    rates = [sum(turn.targets for turn in own) / sum(turn.seconds for turn in own) for own in turns]
    for way, rate in zip(ways, rates):
        console.print(f"  probe {spec.name}, {way}: {rate:,.0f} targets a second", markup=False)
    return ways[rates.index(max(rates))]


def _turns(spec: ClusterSpec, ways: Sequence[Way], options: Options, *, rounds: int, steps: int) -> list[list[Turn]]:
    ranks = spec.nodes * spec.ranks_per_node
    threads = 1 if ranks > 1 else os.cpu_count() or 1
    order = Order(_WORKLOAD, tuple(ways), rounds, steps, threads)
    with Cluster(spec, local=options.local or ranks == 1) as cluster:
        outcome = cluster.run(
            [sys.executable, "-m", "benchmarks.ragged_rank", order.to_json()],
            timeout=_TIMEOUT,
            environment={
                **extension_environment(),
                **KEEP_MEMORY,
                "OMP_NUM_THREADS": str(threads),
                "PYTHONWARNINGS": "ignore",
                "HF_HUB_OFFLINE": "1",
            },
        )
    return [[Turn(*turn) for turn in own] for own in outcome.check().reports[0]["turns"]]
