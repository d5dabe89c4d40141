"""``python -m benchmarks learning``: the loss after as many samples, and after as long, with what replicas leave out.

Four local ranks train on sequences that can be learned, the same ones on every side, and note the loss of every step. How long a
step takes on a cluster is what ``python -m benchmarks compression`` has measured there: its results are read beside the JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.cluster import Cluster
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension
from benchmarks.launches import run_jobs
from benchmarks.learning_plot import plot_curves
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.peers.sides import get_side
from benchmarks.peers.trainer import Job, Setting
from benchmarks.results import Failure, Results, row_of
from benchmarks.study_metrics import SECONDS
from benchmarks.study_tables import markdown_table, write_between_markers
from benchmarks.workloads import LEARNABLE
from recparallel.errors import ConfigError

DOCUMENT = Path("docs") / "compression.md"
BASE = "ddp"
SIDES = (
    BASE,
    "ddp fp16",
    "ddp int8 of ours",
    "ddp top_k_threshold of ours",
    "ddp power_sgd of ours",
    "ddp powersgd",
)
_SETTING = Setting(16, "bf16")
_STEPS, _WINDOW = 48, 4
_QUICK_STEPS, _QUICK_BATCH = 4, 16

Curves = dict[str, list[float]]
"""Losses of every step, by side."""


@dataclass(frozen=True)
class Speeds:
    """Of one cluster.

    Attributes:
        cluster: its name.
        seconds: of a step, by side.
    """

    cluster: str
    seconds: Mapping[str, float]


def run(options: Options) -> int:
    """Train, and print; returns 0."""
    compile_extension()
    environment = capture_environment(options.command, emulated=False)
    results, told = Results(benchmark="learning", environment=environment), []
    for workload in options.workloads or ("head",):
        if workload not in LEARNABLE:
            raise ConfigError(f"--workload {workload}: learning has histories for {', '.join(LEARNABLE)}")
        curves, failed = _train(workload, quick=options.quick)
        found = _speeds(options.json, workload)
        columns, lines = table_of(curves, found)
        print_lines(columns, lines)
        told.append(f"### `{workload}`\n\n{markdown_table(columns, lines)}")
        for side, losses in curves.items():
            results.rows.append(row_of(workload, "local", side, "loss", "", [fmean(losses[-_WINDOW:])]))
        for side, reason in failed.items():
            results.failures.append(Failure(workload=workload, cluster="local", side=side, reason=reason))
        if options.json:
            plot_curves(curves, found, options.json.with_name(f"{options.json.stem}-{workload}.png"))
    if options.json:
        results.save(options.json)
        if not options.quick and options.json.resolve().parent == DOCUMENT.parent.resolve() / "results":
            write_between_markers(DOCUMENT, "\n\n".join(told), name="learning")
    return 0


def table_of(curves: Curves, speeds: Sequence[Speeds]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and lines: the loss at the end, and for each cluster that when the fastest side is at its end."""
    some = next(iter(curves.values()), [])
    columns = ("side", f"loss after {len(some)} steps", *(f"`{each.cluster}`: loss after as long" for each in speeds))
    lines = []
    for side, losses in curves.items():
        cells = [f"{fmean(losses[-_WINDOW:]):.3f}"]
        for each in speeds:
            known = [each.seconds[other] for other in curves if other in each.seconds]
            is_known = side in each.seconds
            cells.append(after(losses, len(losses) * min(known), each.seconds[side]) if is_known else "")
        lines.append((side, *cells))
    return columns, lines


def after(losses: Sequence[float], time: float, seconds: float) -> str:
    """The loss when ``time`` seconds are over, the mean of some steps, and how many steps that were."""
    steps = min(len(losses), round(time / seconds))
    return f"{fmean(losses[max(0, steps - _WINDOW) : steps]):.3f} ({steps} steps)" if steps else "no step yet"


def _train(workload: str, *, quick: bool) -> tuple[Curves, dict[str, str]]:
    """Losses, and why sides did not run."""
    steps, batch = (_QUICK_STEPS, _QUICK_BATCH) if quick else (_STEPS, None)
    setting = Setting(4, _SETTING.precision) if quick else _SETTING
    curves: Curves = {}
    failed: dict[str, str] = {}
    with Cluster(CLUSTERS["flat"], local=True) as cluster:
        for launch in dict.fromkeys(get_side(side).launch for side in SIDES):
            jobs = [
                Job(side, side, LEARNABLE[workload], setting, steps - 1, 1, batch)
                for side in SIDES
                if get_side(side).launch == launch
            ]
            launched = run_jobs(cluster, jobs, seconds_per_job=300)
            failed |= launched.failed
            for side, reason in launched.failed.items():
                console.print(f"  {side} did not run: {reason}", markup=False)
            for side, ranks in launched.done.items():
                # A replica knows the loss of its own share.
                curves[side] = [fmean(known) for known in zip(*(rank["losses"] for rank in ranks))]
                console.print(f"  {side}: {curves[side][0]:.3f} to {curves[side][-1]:.3f}", markup=False)
    return {side: curves[side] for side in SIDES if side in curves}, failed


def _speeds(path: Path | None, workload: str) -> list[Speeds]:
    """Of every cluster on which the workload was measured."""
    measured = None if path is None else path.with_name("compression.json")
    if measured is None or not measured.is_file():
        return []
    rows = [row for row in Results.load(measured).rows if (row.workload, row.metric) == (workload, SECONDS)]
    clusters = dict.fromkeys(row.cluster for row in rows)
    return [Speeds(name, {row.side: row.median for row in rows if row.cluster == name}) for name in clusters]
