"""``python -m benchmarks tensor``: tensor, pipeline and data parallelism and their combinations, and the head spread over the
pipeline, against stock AutoTP, DualPipeV and pipelines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.options import Options
from benchmarks.output import console
from benchmarks.partition import KEEP_MEMORY
from benchmarks.peers.recparallel_pipeline import EXTRAS
from benchmarks.peers.sides import GIVEN_OURS, Side, get_side
from benchmarks.results import Results
from benchmarks.study import Study, run_study
from benchmarks.study_metrics import RATE
from benchmarks.study_tables import markdown_table, write_between_markers
from benchmarks.workloads import Workload

SPREAD, WHOLE = "recparallel spread", "recparallel"
"""Stages share the head; the head on the last stage."""

_PIPELINES = ("ds pp uniform", "ds pp parameters", "ds dualpipev", "ds pp2 dp2")
_OURS = (
    WHOLE,
    SPREAD,
    "recparallel pp2 dp2",
    "recparallel spread2 dp2",
    "recparallel tp2 pp2",
    "recparallel tp2 pp2 positions",
    "recparallel tp2 dp2",
    "recparallel tp4",
)
_COMPARISON = "spread head"
COLUMNS = (
    "workload",
    "cluster",
    "head spread",
    "head on the last stage",
    "over it",
    "best stock pipeline",
    "over it",
    "ds pp uniform with our kernels",
    "over it",
    "all work together allows",
    "fastest of ours",
    "fastest stock",
    "over it",
)


def sides_of(workload: Workload) -> tuple[Side, ...]:
    """Stock pipelines, one of them with our kernels, ours and its combinations, and AutoTP, which comes last."""
    names = (*_PIPELINES, GIVEN_OURS.name, *_OURS, "ds autotp")
    return tuple(side for side in map(get_side, names) if side.suits(workload))


@dataclass(frozen=True)
class Finding:
    """Rates on one workload and cluster, in sequences/s, the named ones with their side.

    Attributes:
        workload, cluster: where.
        spread, whole: our pipeline over all ranks, the head shared by stages or on the last.
        pipeline: the best stock pipeline.
        given_ours: a stock pipeline with our softmax and attention, where it ran: what is left of our lead is the pipeline's.
        ours, stock: the best of all.
        bound: what computing alone would allow if all work were shared evenly.
    """

    workload: str
    cluster: str
    spread: float
    whole: float
    pipeline: tuple[float, str]
    given_ours: float | None
    ours: tuple[float, str]
    stock: tuple[float, str]
    bound: float | None


def findings(results: Results) -> Iterator[Finding]:
    """One for each workload and cluster on which both of our pipelines and a stock one ran."""
    for workload, cluster in dict.fromkeys((row.workload, row.cluster) for row in results.rows):
        where = workload, cluster
        rates = {
            row.side: row.median for row in results.rows if (row.workload, row.cluster, row.metric) == (*where, RATE)
        }
        pipelines = [(rates[side], side) for side in _PIPELINES if side in rates]
        if SPREAD not in rates or WHOLE not in rates or not pipelines:
            continue
        bounds = [
            bound.value
            for bound in results.bounds
            if (bound.workload, bound.cluster, bound.name, bound.side) == (*where, "compute", None)
        ]
        yield Finding(
            workload,
            cluster,
            spread=rates[SPREAD],
            whole=rates[WHOLE],
            pipeline=max(pipelines),
            given_ours=rates.get(GIVEN_OURS.name),
            ours=max((rates[side], side) for side in _OURS if side in rates),
            stock=max((rates[side], side) for side in (*_PIPELINES, "ds autotp") if side in rates),
            bound=bounds[0] if bounds else None,
        )


def _cells(found: Finding) -> tuple[str, ...]:
    return (
        found.workload,
        found.cluster,
        f"{found.spread:.1f}",
        f"{found.whole:.1f}",
        f"{found.spread / found.whole:.2f}",
        f"{found.pipeline[0]:.1f} ({found.pipeline[1]})",
        f"{found.spread / found.pipeline[0]:.2f}",
        "" if found.given_ours is None else f"{found.given_ours:.1f}",
        "" if found.given_ours is None else f"{found.spread / found.given_ours:.2f}",
        "" if found.bound is None else f"{found.bound:.1f}",
        f"{found.ours[0]:.1f} ({found.ours[1]})",
        f"{found.stock[0]:.1f} ({found.stock[1]})",
        f"{found.ours[0] / found.stock[0]:.2f}",
    )


def _conclude(results: Results, path: Path, document: Path | None) -> None:
    table = Table(*COLUMNS, title="sequences/s with the head spread over the pipeline", title_justify="left")
    lines = [_cells(found) for found in findings(results)]
    for cells in lines:
        table.add_row(*cells)
    console.print(table)
    if document is not None:
        pictures = [
            f"![sides of {line[0]} on {line[1]}]({path.parent.name}/{path.stem}-{line[0]}-{line[1]}.png)"
            for line in lines
        ]
        text = "\n\n".join([markdown_table(COLUMNS, lines), *pictures])
        write_between_markers(document, text, name=_COMPARISON)


STUDY = Study(
    name="tensor",
    base="ds pp uniform",
    sides=sides_of,
    workloads=("head",),
    clusters=("flat", "two_tier"),
    document=Path("docs") / "tensor.md",
    environment=KEEP_MEMORY,
    settles=1,  # heaps still grow in the first two steps
    extras=EXTRAS,
    conclude=_conclude,
)


def run(options: Options) -> int:
    """Measure all combinations (:func:`benchmarks.study.run_study`)."""
    return run_study(STUDY, options)
