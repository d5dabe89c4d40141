"""``python -m benchmarks endurance``: 2,000 steps with ``"compression": "auto"`` in which things go wrong.

Gradients that are not finite, steps that the loss scale skips, and, in the middle, a link that drops to a tenth of its rate. Ranks
must stay the same to the last bit, what codecs keep must stay finite, and the exchange must be chosen anew.
"""

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.cluster import Change, Cluster, ClusterSpec
from benchmarks.endurance_rank import Order
from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension, extension_environment, remove_stale_lock
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.partition import KEEP_MEMORY
from benchmarks.results import Results, row_of
from benchmarks.study_tables import markdown_table, write_between_markers

DOCUMENT = Path("docs") / "compression.md"
COLUMNS = ("steps", "link of one node", "step s", "exchanged by", "not finite", "skipped", "loss")
_LINKS = ClusterSpec(name="quick", nodes=4, cpu=0.5, link_mbit=2_000)
"""On which nothing pays; a tenth of it is ``flat``, on which int8 does."""

_STEPS, _QUICK_STEPS = 2_000, 300
_TIMEOUT = 2_400.0
_MEAN_OF = 50


@dataclass(frozen=True)
class Part:
    """The steps between two decisions, or changes of the link.

    Attributes:
        first, last: steps, from 1.
        link: of the node that changes.
        seconds: median of a step.
        ways: of exchange, the bucket of most elements first.
        poisoned, skipped: steps.
        loss: mean over the last steps.
    """

    first: int
    last: int
    link: str
    seconds: float
    ways: str
    poisoned: int
    skipped: int
    loss: float


def run(options: Options) -> int:
    """Train, compare, and print what happened.

    Returns:
        0 if ranks stayed the same, what is kept stayed finite, every poisoned step was skipped, and the exchange was chosen
        anew behind the drop of the link; else 1.
    """
    spec = options.clusters[0] if options.clusters else _LINKS
    if spec.link_mbit is None:
        console.print(f"cluster {spec.name} has no limited link that could drop; use flat")
        return 1
    order = Order(_QUICK_STEPS if options.quick else _STEPS)
    drop = order.steps // 2
    slow = spec.link_mbit / 10
    console.print(f"expected duration: about {order.steps * 0.1 / 60:.0f} minutes")
    compile_extension()
    remove_stale_lock()
    with Cluster(spec, local=options.local) as cluster:
        outcome = cluster.run(
            [sys.executable, "-m", "benchmarks.endurance_rank", order.to_json()],
            timeout=_TIMEOUT,
            changes=[] if options.local else [Change(at_step=drop, node=spec.nodes - 1, link_mbit=slow)],
            environment={**extension_environment(), **KEEP_MEMORY, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"},
        )
    reports = outcome.check().reports
    parts = parts_of(reports[0], order, drop=drop, links=(f"{spec.link_mbit:g} Mbit/s", f"{slow:g} Mbit/s"))
    print_lines(COLUMNS, lines_of(parts))
    faults = faults_of(reports, order, drop=None if options.local else drop)
    for fault in faults:
        console.print(f"[red]{fault}[/red]")
    if options.json:
        results = Results(
            benchmark="endurance", environment=capture_environment(options.command, emulated=not options.local)
        )
        for part in parts:
            side = f"steps {part.first}-{part.last}, {part.link}, {part.ways}"
            results.rows += [
                row_of("small", spec.name, side, metric, unit, [value])
                for metric, unit, value in (
                    ("step_seconds", "s", part.seconds),
                    ("poisoned", "steps", part.poisoned),
                    ("skipped", "steps", part.skipped),
                    ("loss", "", part.loss),
                )
            ]
        results.save(options.json)
        if not options.quick and not faults and options.json.resolve().parent == DOCUMENT.parent.resolve() / "results":
            write_between_markers(DOCUMENT, markdown_table(COLUMNS, lines_of(parts)), name="endurance")
    return 1 if faults else 0


def parts_of(report: dict[str, Any], order: Order, *, drop: int, links: tuple[str, str]) -> list[Part]:
    """Of one rank's report; a part ends where buckets begin to go another way, and where the link drops."""
    ends = sorted({0, drop - 1, order.steps, *(step for step, *_ in report["choices"])})
    chosen: dict[int, str] = {}
    spans: list[tuple[int, int, str, str]] = []
    for begin, end in pairwise(ends):
        chosen |= {size: way for step, size, way in report["choices"] if step == begin}
        link, ways = links[begin + 1 >= drop], ", ".join(dict.fromkeys(chosen[size] for size in sorted(chosen)[::-1]))
        if spans and spans[-1][2:] == (link, ways):
            begin = spans.pop()[0]
        spans.append((begin, end, link, ways))
    return [
        Part(
            first=begin + 1,
            last=end,
            link=link,
            seconds=median(report["seconds"][begin:end]),
            ways=ways,
            poisoned=sum(step % order.poisoned_every == 0 for step in range(begin + 1, end + 1)),
            skipped=sum(report["skipped"][begin:end]),
            loss=fmean(report["losses"][max(begin, end - _MEAN_OF) : end]),
        )
        for begin, end, link, ways in spans
    ]


def faults_of(reports: list[dict[str, Any]], order: Order, *, drop: int | None) -> list[str]:
    """What must not be, in words; ``drop`` is the step at which a link dropped, if one did."""
    first = reports[0]
    found = [
        f"weights of ranks differ behind steps {report['diverged']}" for report in reports[:1] if report["diverged"]
    ]
    found += [
        f"rank {rank} keeps numbers that are not finite" for rank, r in enumerate(reports) if not r["kept_finite"]
    ]
    if any(report["skipped"] != first["skipped"] for report in reports):
        found.append("ranks skipped different steps")
    expected = [step % order.poisoned_every == 0 for step in range(1, order.steps + 1)]
    if missed := [step for step, (skip, bad) in enumerate(zip(first["skipped"], expected), 1) if bad and not skip]:
        found.append(f"steps {missed} had a gradient that was not finite, and were made")
    if drop is None:
        return found
    if not any(step >= drop and anew for step, _, anew in first["looks"]):
        found.append("nobody noticed that the link had dropped")
    if not any(step >= drop for step, *_ in first["choices"]):
        found.append("the exchange was not chosen anew behind the drop")
    return found


def lines_of(parts: list[Part]) -> list[tuple[str, ...]]:
    """A line for each part."""
    return [
        (
            f"{p.first:,}–{p.last:,}",
            p.link,
            f"{p.seconds:.3f}",
            p.ways,
            str(p.poisoned),
            str(p.skipped),
            f"{p.loss:.3f}",
        )
        for p in parts
    ]
