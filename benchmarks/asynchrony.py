"""``python -m benchmarks async``: replicas that exchange in every step, now and then, and at their own pace.

Four replicas of one rank. Each way is a launch of its own; ways take turns, and the base runs a second time in each round under the
control's name. ``no exchange`` is the compute bound: the sum of the replicas' own speeds.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.asynchrony_rank import Order
from benchmarks.cluster import Cluster, ClusterSpec
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension, extension_environment, remove_stale_lock
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.partition import KEEP_MEMORY
from benchmarks.peers.trainer import Job, Setting
from benchmarks.results import Results, ratio_of, row_of
from benchmarks.study_tables import markdown_table, write_between_markers

DOCUMENT = Path("docs") / "data_parallel.md"
COLUMNS = (
    "cluster",
    "way",
    "sequences/s",
    "over DDP",
    "of the bound",
    "MB sent by a rank for 1,000 sequences",
    "waited",
    "steps by rank",
    "staleness",
)
_LOCAL = 16
_INT8 = {"compression": "int8"}
WAYS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "torch DDP": ("ddp", None),
    "synchronous, auto": ("ddp auto of ours", None),
    "synchronous, auto, by speed": ("", {"mode": "synchronous", "shares": "by_speed"}),
    "local_sgd": ("", {"mode": "local_sgd", "local_steps": _LOCAL}),
    "delayed": ("", {"mode": "delayed", "delay": 4, "local_steps": _LOCAL}),
    "diloco, int8": ("", {"mode": "diloco", "local_steps": _LOCAL, "overlap": 4, **_INT8}),
    "bounded_staleness": ("", {"mode": "bounded_staleness", "local_steps": _LOCAL}),
    "bounded_staleness, int8": ("", {"mode": "bounded_staleness", "local_steps": _LOCAL, **_INT8}),
    "no exchange": ("", {}),
}
"""Name to a side of :mod:`benchmarks.peers.sides`, or a section ``data_parallel``. All average or exchange as often."""

BASE, CONTROL, BOUND = "torch DDP", "torch DDP (control)", "no exchange"
_WORKLOAD = "head"
_SETTING = Setting(16, "bf16")
"""With which every side computes the fastest on this workload, by the probes of ``compression``."""
_SECONDS, _TIMEOUT = 90.0, 900.0


@dataclass(frozen=True)
class Turn:
    """One launch: sequences a second of all ranks, MB that a rank sent for 1,000 of them (the mean), the share of time that a rank
    stood still for exchanges (the mean; none for synchronous sides, which do not tell), steps by rank, and staleness (the mean)."""

    rate: float
    megabytes: float
    waited: float | None
    steps: tuple[int, ...]
    staleness: float


def run(options: Options) -> int:
    """Measure on ``mixed`` and ``flat`` unless told otherwise; ``--quick``: one short round of the first.

    Returns:
        0, whatever came out.
    """
    compile_extension()
    specs = options.clusters or tuple(CLUSTERS[name] for name in ("mixed", "flat")[: 1 if options.quick else 2])
    rounds, seconds = (1, 5.0) if options.quick else (options.rounds or 3, _SECONDS)
    ways = {name: way for name, way in WAYS.items() if not options.sides or name in (BASE, BOUND, *options.sides)}
    minutes = len(specs) * (len(ways) + 1) * rounds * (2 * seconds + 90) / 60
    console.print(f"expected duration: {minutes:.0f} minutes")
    results = Results(benchmark="async", environment=capture_environment(options.command, emulated=not options.local))
    lines: list[tuple[str, ...]] = []
    for spec in specs:
        found: dict[str, list[Turn]] = {}
        for number in range(1, rounds + 1):
            for name, way in {**ways, CONTROL: ways[BASE]}.items():
                turn = _turn(spec, way, seconds, options)
                found.setdefault(name, []).append(turn)
                console.print(
                    f"  {spec.name}, round {number} of {rounds}, {name}: {turn.rate:.1f} sequences/s, steps {turn.steps}",
                    markup=False,
                )
        _record(results, spec.name, found)
        lines += lines_of(spec.name, found)
        print_lines(COLUMNS, lines)
        if options.json:
            results.save(options.json)
    beside = options.json is not None and options.json.resolve().parent == DOCUMENT.parent.resolve() / "results"
    if beside and not options.quick and not options.sides:
        write_between_markers(DOCUMENT, markdown_table(COLUMNS, lines), name="async")
    return 0


def lines_of(cluster: str, found: Mapping[str, Sequence[Turn]]) -> list[tuple[str, ...]]:
    """A line for each way."""
    bound = median(turn.rate for turn in found[BOUND])
    lines: list[tuple[str, ...]] = []
    for name, turns in found.items():
        over = [turn.rate / base.rate for turn, base in zip(turns, found[BASE])]
        waited = [turn.waited for turn in turns if turn.waited is not None]
        lines.append(
            (
                cluster,
                name,
                _spread([turn.rate for turn in turns], "{:.1f}"),
                "1" if name == BASE else _spread(over, "{:.2f}"),
                f"{median(turn.rate for turn in turns) / bound:.0%}",
                f"{median(turn.megabytes for turn in turns):,.0f}",
                f"{median(waited):.0%}" if waited else "",
                ", ".join(map(str, turns[-1].steps)),
                f"{median(turn.staleness for turn in turns):.2f}" if name.startswith("bounded") else "",
            )
        )
    return lines


def _turn(spec: ClusterSpec, way: tuple[str, dict[str, Any] | None], seconds: float, options: Options) -> Turn:
    side, mode = way
    order = Order(Job(side, side, _WORKLOAD, _SETTING).to_json(), mode, seconds, _LOCAL)
    remove_stale_lock()
    with Cluster(spec, local=options.local) as cluster:
        outcome = cluster.run(
            [sys.executable, "-m", "benchmarks.asynchrony_rank", order.to_json()],
            timeout=_TIMEOUT,
            environment={
                **extension_environment(),
                **KEEP_MEMORY,
                "PYTHONWARNINGS": "ignore",
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
            },
        )
    reports = outcome.check().reports
    sequences = sum(report["sequences"] for report in reports)
    waited = [report["waited"] / report["seconds"] for report in reports if "waited" in report]
    return Turn(
        rate=sum(report["sequences"] / report["seconds"] for report in reports),
        megabytes=sum(report["sent_bytes"] for report in reports) / len(reports) / 1e6 / (sequences / 1000),
        waited=sum(waited) / len(waited) if waited else None,
        steps=tuple(report["steps"] for report in reports),
        staleness=sum(report.get("staleness", 0.0) for report in reports) / len(reports),
    )


def _record(results: Results, cluster: str, found: Mapping[str, Sequence[Turn]]) -> None:
    for name, turns in found.items():
        for metric, unit, values in (
            ("sequences_per_second", "1/s", [turn.rate for turn in turns]),
            ("sent_megabytes_for_1000_sequences", "MB", [turn.megabytes for turn in turns]),
            ("waited", "", [turn.waited for turn in turns if turn.waited is not None]),
        ):
            if values:
                results.rows.append(row_of(_WORKLOAD, cluster, name, metric, unit, values))
        if name != BASE:
            pairs = [(turn.rate, base.rate) for turn, base in zip(turns, found[BASE])]
            results.ratios.append(
                ratio_of(_WORKLOAD, cluster, "sequences_per_second", side=name, against=BASE, pairs=pairs)
            )


def _spread(values: Sequence[float], form: str) -> str:
    middle, least, most = (form.format(value) for value in (median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"
