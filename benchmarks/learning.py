"""``python -m benchmarks learning``: the loss after as many samples, and after as long, with what replicas leave out.

Four local ranks train on sequences that can be learned, the same ones on every side, and note the loss of every step. How long a
step takes on a cluster is what ``python -m benchmarks compression`` has measured there: its results are read beside the JSON.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean

from benchmarks.cluster import Cluster
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension
from benchmarks.launches import run_jobs
from benchmarks.learning_plot import Panel, plot_curves
from benchmarks.options import Options
from benchmarks.output import console, print_lines
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
_OF_CATALOGUE = ("ddp sparse", "recparallel dp4 lazy auto")
"""Beside these, where a step touches few rows: SparseAdam, and rows by a lazy AdamW with the trunk by ``auto``."""

_SETTING = Setting(16, "bf16")
_DENSE_START = {"ddp powersgd": 2}
"""Steps that a side makes densely before its own way, which is what was measured."""
_STEPS, _WINDOW = 48, 4
_JOB_SECONDS = 1_200.0
"""For all steps of a side: a limit for what hangs, wide enough for a machine that has other things to do."""

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

    def times(self, side: str, steps: int) -> list[float]:
        """When each of so many steps of a side is done; empty where the side was not measured."""
        dense = min(steps, _DENSE_START.get(side, 0))
        ways = [BASE] * dense + [side] * (steps - dense)
        return list(accumulate(self.seconds[way] for way in ways)) if set(ways) <= self.seconds.keys() else []


def run(options: Options) -> int:
    """Train, and print; returns 0.

    Raises:
        ConfigError: a workload without histories that can be learned.
    """
    for workload in options.workloads:
        if workload not in LEARNABLE:
            raise ConfigError(f"--workload {workload}: learning has histories for {', '.join(LEARNABLE)}")
    compile_extension()
    environment = capture_environment(options.command, emulated=False)
    results, told = Results(benchmark="learning", environment=environment), []
    for workload in options.workloads or ("head",):
        measured = _measured(options.json)
        speeds = _speeds(measured, workload)
        if not speeds:
            console.print(f"no seconds of {workload} in compression.json: losses are given by steps alone")
        curves, failed = _train(workload, _settings(measured, workload), quick=options.quick)
        columns, lines = table_of(curves, speeds)
        print_lines(columns, lines)
        told.append(f"### `{workload}`\n\n{markdown_table(columns, lines)}")
        for side, losses in curves.items():
            for step, loss in enumerate(losses, 1):
                results.rows.append(row_of(workload, "local", side, f"loss_of_step_{step}", "", [loss]))
        for side, reason in failed.items():
            results.failures.append(Failure(workload=workload, cluster="local", side=side, reason=reason))
        if options.json:
            panels = [
                Panel(
                    each.cluster, {side: each.times(side, len(curves[side])) for side in curves}, end_of(curves, each)
                )
                for each in speeds
            ]
            plot_curves(curves, panels, options.json.with_name(f"{options.json.stem}-{workload}.png"))
    if options.json:
        results.save(options.json)
        if not options.quick and options.json.resolve().parent == DOCUMENT.parent.resolve() / "results":
            write_between_markers(DOCUMENT, "\n\n".join(told), name="learning")
    return 0


def table_of(curves: Curves, speeds: Sequence[Speeds]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and lines: the loss at the end, and for each cluster that when the fastest side is at its end."""
    some = next(iter(curves.values()), [])
    columns = ("side", f"loss after {len(some)} steps", *(f"`{each.cluster}`: loss after as long" for each in speeds))
    ends = [end_of(curves, each) for each in speeds]
    lines = []
    for side, losses in curves.items():
        after = [after_as_long(losses, each.times(side, len(losses)), end) for each, end in zip(speeds, ends)]
        lines.append((side, f"{fmean(losses[-_WINDOW:]):.3f}", *after))
    return columns, lines


def sides_of(workload: str) -> tuple[str, ...]:
    """Those that are compared."""
    return SIDES + (_OF_CATALOGUE if workload == "catalogue" else ())


def end_of(curves: Curves, speeds: Speeds) -> float:
    """When the fastest side has made all of its steps."""
    return min((times[-1] for side in curves if (times := speeds.times(side, len(curves[side])))), default=0.0)


def after_as_long(losses: Sequence[float], times: Sequence[float], end: float) -> str:
    """The loss at ``end``, the mean of some steps, and how many steps were done; empty without times."""
    if not times:
        return ""
    steps = bisect_right(times, end * (1 + 1e-9))
    return f"{fmean(losses[max(0, steps - _WINDOW) : steps]):.3f} ({steps} steps)" if steps else "no step yet"


def _train(workload: str, settings: Mapping[str, Setting], *, quick: bool) -> tuple[Curves, dict[str, str]]:
    """Losses, and why sides did not run."""
    steps, batch = (_QUICK_STEPS, _QUICK_BATCH) if quick else (_STEPS, None)
    curves: Curves = {}
    failed: dict[str, str] = {}
    with Cluster(CLUSTERS["flat"], local=True) as cluster:
        for side in sides_of(workload):
            setting = Setting(4, _SETTING.precision) if quick else settings.get(side, _SETTING)
            job = Job(side, side, LEARNABLE[workload], setting, steps - 1, 1, batch)
            launched = run_jobs(cluster, [job], seconds_per_job=_JOB_SECONDS)
            failed |= launched.failed
            for reason in launched.failed.values():
                console.print(f"  {side} did not run: {reason}", markup=False)
            for ranks in launched.done.values():
                # A replica knows the loss of its own share.
                curves[side] = [fmean(known) for known in zip(*(rank["losses"] for rank in ranks))]
                console.print(f"  {side} ({setting}): {curves[side][0]:.3f} to {curves[side][-1]:.3f}", markup=False)
    return curves, failed


def _measured(path: Path | None) -> Results | None:
    """What ``compression`` has found."""
    beside = None if path is None else path.with_name("compression.json")
    return Results.load(beside) if beside is not None and beside.is_file() else None


def _speeds(measured: Results | None, workload: str) -> list[Speeds]:
    """Of every cluster on which the workload was measured."""
    rows = [row for row in measured.rows if (row.workload, row.metric) == (workload, SECONDS)] if measured else []
    clusters = dict.fromkeys(row.cluster for row in rows)
    return [Speeds(name, {row.side: row.median for row in rows if row.cluster == name}) for name in clusters]


def _settings(measured: Results | None, workload: str) -> dict[str, Setting]:
    """By side, as it was measured: a loss belongs to the seconds of the same setting."""
    chosen = [choice for choice in measured.choices if choice.workload == workload] if measured else []
    return {choice.side: Setting.from_words(choice.setting) for choice in reversed(chosen)}
