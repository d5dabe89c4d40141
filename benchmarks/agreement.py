"""``python -m benchmarks.agreement A.json B.json``: do two runs of a benchmark tell the same?

They do if each ratio of the one lies within the noise of the same ratio of the other: the larger of the two controls'
spreads on that workload and cluster, and never less than 5 % (:func:`benchmarks.results.noise`).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.interleave import control_name
from benchmarks.output import console
from benchmarks.results import SMALLEST, Ratio, Results, noise
from benchmarks.study_metrics import RATE
from recparallel.errors import RecParallelError


@dataclass(frozen=True)
class Agreement:
    """One ratio in two runs.

    Attributes:
        first, second: what each run found.
        allowed: by which share of the first the second may differ.
    """

    first: Ratio
    second: Ratio
    allowed: float

    @property
    def difference(self) -> float:
        """Of the medians, as a share of the first."""
        return self.second.median / self.first.median - 1

    @property
    def agrees(self) -> bool:
        """Whether it is within the noise."""
        return abs(self.difference) <= self.allowed


def compare_runs(first: Results, second: Results, *, metric: str = RATE) -> list[Agreement]:
    """Every ratio of ``metric`` that both runs have; the controls say how much they may differ."""
    theirs = {(r.workload, r.cluster, r.side): r for r in second.ratios if r.metric == metric}
    pairs = [
        (r, theirs[r.workload, r.cluster, r.side])
        for r in first.ratios
        if r.metric == metric and (r.workload, r.cluster, r.side) in theirs
    ]
    allowed: dict[tuple[str, str], float] = {}
    for ratio in (r for pair in pairs for r in pair if r.side == control_name(r.against)):
        where = ratio.workload, ratio.cluster
        allowed[where] = max(allowed.get(where, 0.0), noise(ratio))
    return [Agreement(a, b, allowed.get((a.workload, a.cluster), SMALLEST)) for a, b in pairs]


def main(paths: Sequence[str]) -> int:
    """Print the ratios of two result files side by side; 1 if one does not agree, 2 if there is nothing to compare."""
    if len(paths) != 2:
        console.print("usage: python -m benchmarks.agreement A.json B.json", markup=False)
        return 2
    found = compare_runs(*(Results.load(Path(path)) for path in paths))
    if not found:
        console.print("the two files have no ratio in common", markup=False)
        return 2
    table = Table("workload", "cluster", "side", "first", "second", "difference", "allowed", "agrees")
    for one in found:
        table.add_row(
            one.first.workload,
            one.first.cluster,
            one.first.side,
            f"{one.first.median:.3f}",
            f"{one.second.median:.3f}",
            f"{one.difference:+.1%}",
            f"{one.allowed:.1%}",
            "yes" if one.agrees else "no",
        )
    console.print(table)
    agreeing = sum(one.agrees for one in found)
    console.print(f"{agreeing} of {len(found)} ratios agree", markup=False)
    return 0 if agreeing == len(found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RecParallelError as error:
        sys.exit(f"{error}")
