"""``python -m benchmarks rebalance``: the node of a middle stage is halved in mid-run, and recovers.

In every round, one after the other:

1. Our pipeline with live rebalancing, through both changes.
2. Our pipeline cut anew while the node is slow: the optimum that a move can reach.
3. Stock DeepSpeed, ``uniform`` and ``parameters``: some steps, the change, a checkpoint, and a restart from it.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.choices import Choices
from benchmarks.cluster import Change, Cluster, ClusterSpec
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension, extension_environment, remove_stale_lock
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.partition import KEEP_MEMORY
from benchmarks.peers.sides import Side, get_side
from benchmarks.peers.trainer import Job
from benchmarks.rebalance_plot import plot_steps, plot_timelines
from benchmarks.rebalance_rank import Order
from benchmarks.rebalance_story import Schedule, Story, tell
from benchmarks.results import Results, Row, row_of
from benchmarks.study_tables import markdown_table, write_between_markers
from benchmarks.tuning import chosen_setting, tune
from benchmarks.workloads import Workload, get_workload

ADAPTIVE, ANEW = "recparallel adaptive", "recparallel"
STOCK = ("ds pp uniform", "ds pp parameters")
DOCUMENT = Path("docs") / "rebalancing.md"
_STEPS_BEFORE, _STEPS_SLOW, _STEPS_AFTER = 4, 3, 4
_TIMEOUT = 900.0
COLUMNS = (
    "cluster",
    "step before s",
    "node halved, nothing moved",
    "moved",
    "cut anew",
    "of its throughput",
    "steps until 90 % of it",
    "node back",
    "steps until 90 % of before",
    "moves",
    "of each",
)
STOCK_COLUMNS = ("cluster", "side", "step before s", "node halved", "restarted", "restart s", "ours, moved, over it")


@dataclass(frozen=True)
class Restart:
    """What a stock side did in one round, in seconds: steps before, with the slow node, and restarted; and the restart itself."""

    before: float
    slow: float
    restarted: float
    restart_seconds: float


@dataclass
class Round:
    """Everything of one round."""

    story: Story
    anew: float
    restarts: dict[str, Restart]
    reports: list[dict[str, Any]]


def run(options: Options) -> int:
    """Measure on the chosen clusters (``flat`` and ``eight`` unless told otherwise; ``--quick``: one round on the first).

    Returns:
        0, whatever came out.
    """
    environment = capture_environment(options.command, emulated=not options.local)
    results = Results(benchmark="rebalance", environment=environment)
    choices = Choices.beside(options.json, environment, fresh=options.fresh)
    workload = get_workload(options.workloads[0] if options.workloads else "deep")
    specs = options.clusters or tuple(CLUSTERS[name] for name in ("flat", "eight")[: 1 if options.quick else 2])
    rounds = options.rounds or (1 if options.quick else 3)
    console.print(
        f"expected duration: about {len(specs) * rounds * 7:.0f} minutes, and 5 for each cluster without probes"
    )
    compile_extension()
    for spec in specs:
        sides = [get_side(name) for name in (ANEW, *STOCK)]
        if not options.quick:
            tune(sides, workload, spec, choices, enter=lambda spec: _entered(spec, options), settles=1)
        found: list[Round] = []
        for number in range(rounds):
            with _entered(spec, options) as cluster:
                found.append(_round(cluster, workload, choices))
            console.print(f"  {spec.name}, round {number + 1} of {rounds}: {_in_words(found[-1])}", markup=False)
            _record(results, workload.name, spec.name, found)
            if options.json:
                publish(results, options.json, document=None if options.quick else DOCUMENT)
                plot_round(found[-1].reports, found[-1].anew, spec.name, options.json)
    for columns, lines in ((COLUMNS, lines_of(results)), (STOCK_COLUMNS, stock_lines_of(results))):
        print_lines(columns, lines)
    return 0


def publish(results: Results, path: Path, *, document: Path | None) -> None:
    """What has been measured so far: the JSON, and the tables of a document that stands beside the results' folder."""
    results.save(path)
    if document is not None and document.is_file() and path.resolve().parent == document.parent.resolve() / "results":
        tables = (markdown_table(COLUMNS, lines_of(results)), markdown_table(STOCK_COLUMNS, stock_lines_of(results)))
        write_between_markers(document, "\n\n".join(tables), name="rebalance")


def plot_round(reports: list[dict[str, Any]], anew: float | None, cluster: str, path: Path) -> None:
    """The pictures of a run, beside the JSON."""
    plot_steps(reports, Schedule(), anew, path.with_name(f"{path.stem}-steps-{cluster}.png"))
    plot_timelines(reports, Schedule(), path.with_name(f"{path.stem}-timeline-{cluster}.png"))


@contextmanager
def _entered(spec: ClusterSpec, options: Options) -> Iterator[Cluster]:
    with Cluster(spec, local=options.local) as cluster:
        yield cluster


def _round(cluster: Cluster, workload: Workload, choices: Choices) -> Round:
    spec, at = cluster.spec, Schedule()
    node = spec.nodes // 2
    full = spec.limits(node).cpu
    half = None if full is None else full / 2
    jobs = {name: _job(get_side(name), workload, spec, choices) for name in (ADAPTIVE, ANEW, *STOCK)}
    halved = Change(at_step=0, node=node, cpu=half)

    changes = [Change(at_step=at.slow, node=node, cpu=half), Change(at_step=at.recovered, node=node, cpu=full)]
    reports = _run(cluster, Order(jobs[ADAPTIVE].to_json(), at.steps, at.traced), changes)[0]
    anew = _run(cluster, Order(jobs[ANEW].to_json(), 8), [halved])[0]
    optimum = median(step["seconds"] for step in anew[0]["steps"][2:])
    restarts = {name: _restart(cluster, jobs[name], halved) for name in STOCK}
    return Round(tell(reports[0]["steps"], reports[0]["moves"], optimum, at), optimum, restarts, reports)


def _job(side: Side, workload: Workload, spec: ClusterSpec, choices: Choices) -> Job:
    """At the best setting; with rebalancing that of our pipeline without it."""
    known = get_side(ANEW) if side.name == ADAPTIVE else side
    return Job(side.name, side.name, workload.name, chosen_setting(known, workload, spec, choices))


def _restart(cluster: Cluster, job: Job, halved: Change) -> Restart:
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
        change = halved.model_copy(update={"at_step": _STEPS_BEFORE + 1})
        first, _ = _run(cluster, Order(job.to_json(), _STEPS_BEFORE + _STEPS_SLOW + 1, save=folder), [change])
        second, started = _run(cluster, Order(job.to_json(), _STEPS_AFTER, load=folder), [halved])
    seconds = [step["seconds"] for step in first[0]["steps"]]
    return Restart(
        before=median(seconds[1:_STEPS_BEFORE]),
        slow=median(seconds[_STEPS_BEFORE + 1 :]),
        restarted=median(step["seconds"] for step in second[0]["steps"][1:]),
        restart_seconds=first[0]["save_seconds"] + second[0]["steps"][0]["begin"] - started,
    )


def _run(cluster: Cluster, order: Order, changes: list[Change]) -> tuple[list[dict[str, Any]], float]:
    """Reports by rank, and when the launch began."""
    remove_stale_lock()
    started = time.monotonic()
    result = cluster.run(
        [sys.executable, "-m", "benchmarks.rebalance_rank", order.to_json()],
        timeout=_TIMEOUT,
        changes=changes,
        environment={
            **extension_environment(),
            **KEEP_MEMORY,
            "PYTHONWARNINGS": "ignore",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        },
    )
    return result.check().reports, started


def _in_words(one: Round) -> str:
    story = one.story
    moves = ", ".join(f"behind step {step} in {seconds:.2f} s" for step, seconds, _ in story.moves) or "none"
    return (
        f"steps of {story.before:.2f} s, {story.dropped:.2f} s with the slow node, {story.settled:.2f} s moved, "
        f"{one.anew:.2f} s cut anew, {story.again:.2f} s again; moves: {moves}"
    )


def _record(results: Results, workload: str, cluster: str, rounds: list[Round]) -> None:
    """The rows of a cluster, in place of those of fewer rounds."""
    results.rows = [row for row in results.rows if row.cluster != cluster]

    def add(side: str, metric: str, unit: str, values: list[Any]) -> None:
        known = [value for value in values if value is not None]
        if known:
            results.rows.append(row_of(workload, cluster, side, metric, unit, known))

    stories = [one.story for one in rounds]
    for name in ("before", "dropped", "settled", "again"):
        add(ADAPTIVE, f"{name}_seconds", "s", [getattr(story, name) for story in stories])
    for name in ("steps_to_reach", "steps_to_return"):
        add(ADAPTIVE, name, "steps", [getattr(story, name) for story in stories])
    add(ADAPTIVE, "moves", "", [len(story.moves) for story in stories])
    add(ADAPTIVE, "move_seconds", "s", [seconds for story in stories for _, seconds, _ in story.moves])
    add(ADAPTIVE, "move_steps", "steps", [steps for story in stories for _, _, steps in story.moves])
    add(ANEW, "settled_seconds", "s", [one.anew for one in rounds])
    add(ADAPTIVE, "of_cut_anew", "", [one.anew / one.story.settled for one in rounds])
    for side in rounds[0].restarts:
        for entry in fields(Restart):
            add(side, entry.name, "s", [asdict(one.restarts[side])[entry.name] for one in rounds])


def lines_of(results: Results) -> list[tuple[str, ...]]:
    """A line for each cluster: our pipeline through both changes."""
    lines: list[tuple[str, ...]] = []
    for cluster in dict.fromkeys(row.cluster for row in results.rows):
        own = {(row.side, row.metric): row for row in results.rows if row.cluster == cluster}

        def cell(metric: str, form: str = "{:.2f}", side: str = ADAPTIVE, own: Mapping[Any, Row] = own) -> str:
            row = own.get((side, metric))
            return "never" if row is None else _spread(row, form)

        runs = own[ADAPTIVE, "before_seconds"].runs
        lines.append(
            (
                f"{cluster} ({runs} {'round' if runs == 1 else 'rounds'})",
                cell("before_seconds"),
                cell("dropped_seconds"),
                cell("settled_seconds"),
                cell("settled_seconds", side=ANEW),
                cell("of_cut_anew", "{:.0%}"),
                cell("steps_to_reach", "{:.0f}"),
                cell("again_seconds"),
                cell("steps_to_return", "{:.0f}"),
                cell("moves", "{:.0f}"),
                f"{cell('move_seconds')} s, {cell('move_steps')} steps",
            )
        )
    return lines


def stock_lines_of(results: Results) -> list[tuple[str, ...]]:
    """A line for each stock side on each cluster."""
    lines: list[tuple[str, ...]] = []
    for cluster, side in dict.fromkeys((row.cluster, row.side) for row in results.rows if row.side in STOCK):
        own = {row.metric: row for row in results.rows if (row.cluster, row.side) == (cluster, side)}
        ours = next(
            row for row in results.rows if (row.cluster, row.side, row.metric) == (cluster, ADAPTIVE, "settled_seconds")
        )
        times = [_spread(own[metric]) for metric in ("before", "slow", "restarted")]
        over = f"{own['restarted'].median / ours.median:.2f}"
        lines.append((cluster, side, *times, _spread(own["restart_seconds"], "{:.1f}"), over))
    return lines


def _spread(row: Row, form: str = "{:.2f}") -> str:
    middle, least, most = (form.format(value) for value in (row.median, row.min, row.max))
    return middle if least == most else f"{middle} ({least}–{most})"
