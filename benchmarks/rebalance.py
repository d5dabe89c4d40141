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

from rich.table import Table

from benchmarks.choices import Choices
from benchmarks.cluster import Change, Cluster, ClusterSpec
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension, extension_environment, remove_stale_lock
from benchmarks.options import Options
from benchmarks.output import console
from benchmarks.partition import KEEP_MEMORY
from benchmarks.peers.sides import Side, get_side
from benchmarks.peers.trainer import Job
from benchmarks.rebalance_plot import plot_steps, plot_timelines
from benchmarks.rebalance_rank import Order
from benchmarks.rebalance_story import Schedule, Story, tell
from benchmarks.results import Results, row_of
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
    "moves: s (steps)",
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
    found: dict[str, list[Round]] = {}
    for spec in specs:
        sides = [get_side(name) for name in (ANEW, *STOCK)]
        if not options.quick:
            tune(sides, workload, spec, choices, enter=lambda spec: _entered(spec, options), settles=1)
        for number in range(rounds):
            with _entered(spec, options) as cluster:
                one = _round(cluster, workload, choices)
            found.setdefault(spec.name, []).append(one)
            console.print(f"  {spec.name}, round {number + 1} of {rounds}: {_in_words(one)}", markup=False)
            _record(results, workload.name, spec.name, found[spec.name])
            if options.json:
                results.save(options.json)
    lines, stock_lines = _lines(found), _stock_lines(found)
    for columns, own in ((COLUMNS, lines), (STOCK_COLUMNS, stock_lines)):
        table = Table()
        for column in columns:
            table.add_column(column, overflow="fold")
        for line in own:
            table.add_row(*line)
        console.print(table)
    if options.json:
        _publish(found, options, lines, stock_lines)
    return 0


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


def _lines(found: Mapping[str, list[Round]]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for cluster, rounds in found.items():
        stories = [one.story for one in rounds]
        moves = "; ".join(
            ", ".join(f"{seconds:.2f} ({steps:.1f})" for _, seconds, steps in story.moves) for story in stories
        )
        lines.append(
            (
                cluster,
                _spread([story.before for story in stories]),
                _spread([story.dropped for story in stories]),
                _spread([story.settled for story in stories]),
                _spread([one.anew for one in rounds]),
                _spread([one.anew / one.story.settled for one in rounds], "{:.0%}"),
                ", ".join(_count(story.steps_to_reach) for story in stories),
                _spread([story.again for story in stories]),
                ", ".join(_count(story.steps_to_return) for story in stories),
                moves,
            )
        )
    return lines


def _stock_lines(found: Mapping[str, list[Round]]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for cluster, rounds in found.items():
        for side in rounds[0].restarts:
            own = [one.restarts[side] for one in rounds]
            lines.append(
                (
                    cluster,
                    side,
                    _spread([restart.before for restart in own]),
                    _spread([restart.slow for restart in own]),
                    _spread([restart.restarted for restart in own]),
                    _spread([restart.restart_seconds for restart in own], "{:.1f}"),
                    _spread([one.restarts[side].restarted / one.story.settled for one in rounds]),
                )
            )
    return lines


def _spread(values: list[float], form: str = "{:.2f}") -> str:
    middle = form.format(median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))}–{form.format(max(values))})"


def _count(steps: int | None) -> str:
    return "never" if steps is None else str(steps)


def _publish(
    found: Mapping[str, list[Round]], options: Options, lines: list[tuple[str, ...]], stock: list[tuple[str, ...]]
) -> None:
    """Pictures of the last round of each cluster, and the tables in the document of a full run."""
    path = options.json
    assert path is not None
    for cluster, rounds in found.items():
        plot_steps(rounds[-1].reports, Schedule(), rounds[-1].anew, path.with_name(f"{path.stem}-steps-{cluster}.png"))
        plot_timelines(rounds[-1].reports, Schedule(), path.with_name(f"{path.stem}-timeline-{cluster}.png"))
    documented = DOCUMENT.is_file() and path.resolve().parent == DOCUMENT.parent.resolve() / "results"
    if documented and not options.quick:
        tables = f"{markdown_table(COLUMNS, lines)}\n\n{markdown_table(STOCK_COLUMNS, stock)}"
        write_between_markers(DOCUMENT, tables, name="rebalance")
