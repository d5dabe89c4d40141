"""``python -m benchmarks partition``: our cut against DeepSpeed's own, what was predicted of it, and what no cut can beat."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.cluster import ClusterSpec
from benchmarks.options import Options
from benchmarks.output import console
from benchmarks.partition_plot import plot_stages
from benchmarks.peers.recparallel_pipeline import EXTRAS
from benchmarks.peers.sides import Side, get_side
from benchmarks.results import Bound, Results
from benchmarks.study import Study, run_study
from benchmarks.study_metrics import RATE, extra
from benchmarks.study_tables import markdown_table, write_between_markers
from benchmarks.workloads import Workload

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "THP_MEM_ALLOC_ENABLE": "1"}
"""On every side. With the defaults large blocks are given back and taken anew, page by page, in one pass more than in the next:
the same head takes 0.23 to 0.31 s, and no prediction could be better than that (``recparallel.engines.allocator``)."""

OURS = "recparallel"
_STOCK = ("ds pp uniform", "ds pp parameters", "ds dualpipev", "ds dualpipev2 dp2")
_PREDICTIONS = "partition predictions"
COLUMNS = (
    "workload",
    "cluster",
    "sequences/s",
    "best stock",
    "over it",
    "no cut can beat",
    "reached",
    "of the relaxed bound",
    "step: predicted / measured s",
    "error",
    "stages: largest error (of how many s)",
    "start s",
)


def sides_of(workload: Workload) -> tuple[Side, ...]:
    """DeepSpeed's own cuts, DualPipeV, and ours."""
    return tuple(side for side in map(get_side, (*_STOCK, OURS)) if side.suits(workload))


@dataclass(frozen=True)
class Finding:
    """What came of our cut on one workload and cluster; rates in sequences/s, times in seconds.

    Attributes:
        workload, cluster: where.
        rate, stock_rate, stock: ours, and the best stock side's with its name.
        bound: the rate that no contiguous cut can beat; the best of all cuts, simulated.
        relaxed: a rate above it that needs no search: the stages do not wait for each other within a step.
        predicted, measured: seconds of a step.
        stage_errors: of the seconds predicted for each rank's stage, as shares of those measured.
        stage_seconds: those measured.
        start: seconds of ``initialize`` with profiling.
    """

    workload: str
    cluster: str
    rate: float
    stock_rate: float
    stock: str
    bound: float
    relaxed: float
    predicted: float
    measured: float
    stage_errors: tuple[float, ...]
    stage_seconds: tuple[float, ...]
    start: float

    @property
    def step_error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1

    @property
    def stage_error(self) -> tuple[float, float]:
        """The largest of a stage, and what that stage takes in a step."""
        return max(zip(self.stage_errors, self.stage_seconds), key=lambda pair: abs(pair[0]))


def findings(results: Results) -> Iterator[Finding]:
    """One for each workload and cluster on which ours ran."""
    for workload, cluster in dict.fromkeys((row.workload, row.cluster) for row in results.rows):
        own = {
            (row.side, row.metric): row.median
            for row in results.rows
            if (row.workload, row.cluster) == (workload, cluster)
        }
        if (OURS, RATE) not in own:
            continue
        rates = {side: own[side, RATE] for side in _STOCK if (side, RATE) in own}
        stock = max(rates, key=lambda side: rates[side], default="")
        ranks = 0
        while (OURS, extra("stage", ranks)) in own:
            ranks += 1
        yield Finding(
            workload,
            cluster,
            rate=own[OURS, RATE],
            stock_rate=rates.get(stock, 0.0),
            stock=stock,
            bound=own[OURS, RATE] * own[OURS, "seconds_per_step"] / own[OURS, extra("fastest_step_seconds", 0)],
            relaxed=own[OURS, RATE] * own[OURS, "seconds_per_step"] / own[OURS, extra("shortest_step_seconds", 0)],
            predicted=own[OURS, extra("predicted_step_seconds", 0)],
            measured=own[OURS, "seconds_per_step"],
            stage_errors=tuple(own[OURS, extra("stage_error", r)] for r in range(ranks)),
            stage_seconds=tuple(own[OURS, extra("stage_seconds", r)] for r in range(ranks)),
            start=max(
                row.max
                for row in results.rows
                if (row.workload, row.cluster, row.side) == (workload, cluster, OURS)
                and row.metric.startswith("start_seconds")
            ),
        )


def _cells(found: Finding) -> tuple[str, ...]:
    error, seconds = found.stage_error
    return (
        found.workload,
        found.cluster,
        f"{found.rate:.1f}",
        f"{found.stock_rate:.1f} ({found.stock})",
        f"{found.rate / found.stock_rate:.2f}" if found.stock_rate else "",
        f"{found.bound:.1f}",
        f"{found.rate / found.bound:.0%}",
        f"{found.rate / found.relaxed:.0%}",
        f"{found.predicted:.2f} / {found.measured:.2f}",
        f"{found.step_error:+.1%}",
        f"{error:+.1%} ({seconds:.2f})",
        f"{found.start:.1f}",
    )


def _bound(results: Results, workload: Workload, spec: ClusterSpec) -> None:
    for found in findings(results):
        if (found.workload, found.cluster) == (workload.name, spec.name):
            results.bounds.append(
                Bound(
                    workload=found.workload,
                    cluster=found.cluster,
                    name="indivisible",
                    metric=RATE,
                    unit="sequences/s",
                    value=found.bound,
                    basis="the best that any contiguous cut in any order of devices allows, as profiled",
                    side=OURS,
                )
            )


def _conclude(results: Results, path: Path, document: Path | None) -> None:
    table = Table(*COLUMNS, title="cut by recparallel", title_justify="left")
    lines = [_cells(found) for found in findings(results)]
    pictures = []
    for cells in lines:
        table.add_row(*cells)
        name = f"{path.stem}-stages-{cells[0]}-{cells[1]}.png"
        plot_stages(results, cells[0], cells[1], path.with_name(name))
        pictures.append(f"![stages of {cells[0]} on {cells[1]}]({path.parent.name}/{name})")
    console.print(table)
    if document is not None:
        text = "\n\n".join([markdown_table(COLUMNS, lines), *pictures])
        write_between_markers(document, text, name=_PREDICTIONS)


STUDY = Study(
    name="partition",
    base="ds pp uniform",
    sides=sides_of,
    workloads=("head", "catalogue", "deep"),
    clusters=("flat", "mixed"),
    document=Path("docs") / "partitioning.md",
    environment=KEEP_MEMORY,
    settles=1,  # heaps still grow in the first two steps
    extras=EXTRAS,
    bound=_bound,
    conclude=_conclude,
)


def run(options: Options) -> int:
    """Measure DeepSpeed's cuts and ours (:func:`benchmarks.study.run_study`)."""
    return run_study(STUDY, options)
