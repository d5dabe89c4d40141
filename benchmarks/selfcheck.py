"""Does the emulation do what it says? Link rate, all-reduce time and CPU share against what is configured, within 10 %."""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.bounds import PAYLOAD_SHARE, ring_all_reduce_seconds
from benchmarks.cluster import Cluster, ClusterSpec, RankPlace, RunResult
from benchmarks.cluster.cleanup import remains
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.options import Options
from benchmarks.output import console
from benchmarks.results import Bound, Results, row_of

TOLERANCE = 0.10
_BYTES = 4_000_000
# Other work on the machine comes and goes; what is outside because of it is measured again.
_ATTEMPTS = 3


@dataclass(frozen=True)
class Check:
    """One measured quantity beside what it should be.

    Attributes:
        what: in words, with the node or rank.
        metric, unit: as results name them.
        values: every reading.
        expected: what was configured, or the bound; ``None`` where there is no limit to compare with.
    """

    what: str
    metric: str
    unit: str
    values: tuple[float, ...]
    expected: float | None

    @property
    def median(self) -> float:
        """The middle reading."""
        return statistics.median(self.values)

    @property
    def deviation(self) -> float | None:
        """How far the median lies from what is expected, as a share of it."""
        return None if not self.expected else self.median / self.expected - 1

    @property
    def passed(self) -> bool:
        """Whether that is within the tolerance."""
        return self.deviation is None or abs(self.deviation) <= TOLERANCE


def run(options: Options) -> int:
    """Check the chosen clusters (`flat` and `two_tier` unless told otherwise).

    Returns:
        0 if every quantity is within 10 % and nothing is left behind, also not after SIGKILL; else 1.
    """
    clusters = options.clusters or (CLUSTERS["flat"], CLUSTERS["two_tier"])
    settings = _settings(options)
    console.print(f"expected duration: about {len(clusters) * _expected_seconds(settings):.0f} s")
    results = Results(
        benchmark="selfcheck", environment=capture_environment(options.command, emulated=not options.local)
    )
    good = True
    for spec in clusters:
        good &= any(_check_cluster(spec, settings, options, results) for _ in range(_ATTEMPTS))
    good &= _check_kill(clusters[0], local=options.local)
    if options.json:
        results.save(options.json)
    return 0 if good else 1


def _settings(options: Options) -> dict[str, float]:
    rounds = options.rounds or (1 if options.quick else 3)
    return {
        "rounds": rounds,
        "stream_seconds": 2.5,
        "spin_seconds": 2.0,
        "all_reduce_bytes": _BYTES,
        "all_reduces": 5 * rounds,
    }


def _expected_seconds(settings: dict[str, float]) -> float:
    return 15 + settings["rounds"] * (settings["stream_seconds"] + settings["spin_seconds"] + 2)


def _check_kill(spec: ClusterSpec, *, local: bool) -> bool:
    """Kill a process that holds a cluster, by SIGKILL, and look at what is left of it after a few seconds."""
    command = [sys.executable, "-m", "benchmarks.hold", _argument(spec), *(["--local"] if local else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        held = remains(name)
        holder.kill()
    deadline = time.monotonic() + 20
    while (left := remains(name)) and time.monotonic() < deadline:
        time.sleep(0.1)
    console.print(f"after SIGKILL of a run that held {len(held)} things: " + ("; ".join(left) or "nothing left"))
    return bool(held) and not left


def _argument(spec: ClusterSpec) -> str:
    return spec.name if spec == CLUSTERS.get(spec.name) else "flat"


def _check_cluster(spec: ClusterSpec, settings: dict[str, float], options: Options, results: Results) -> bool:
    cluster = Cluster(spec, local=options.local)
    with cluster:
        result = cluster.run(
            lambda place: _command(place, settings),
            timeout=60 + 4 * _expected_seconds(settings),
        ).check()
    checks = [*_rates(spec, result), *_shares(spec, result), _all_reduce(spec, result)]
    if not result.emulated:
        checks = [dataclasses.replace(check, expected=None) for check in checks]
    left = remains(cluster.name)
    _show(spec, result, checks, left)
    _record(spec, result, checks, results)
    good = not left and (options.local or all(check.passed for check in checks))
    if not good:
        console.print(
            f"{spec.name} is outside: other work on the machine, too few cores for this cluster, or CPU shares so small that "
            "they and not the links bound the all-reduce"
        )
    return good


def _command(place: RankPlace, settings: dict[str, float]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.probe", place.address, json.dumps(settings)]


def _rates(spec: ClusterSpec, result: RunResult) -> Iterable[Check]:
    if spec.nodes == 1:
        return
    for node in range(spec.nodes):
        values = result.reports[spec.ranks_of(node)[0]]["received_mbit"]
        ends = [spec.limits(node).link_mbit, spec.limits((node - 1) % spec.nodes).link_mbit]
        limits = [rate for rate in ends if rate is not None]
        expected = min(limits) if limits else None
        yield Check(f"data rate into node {node}", f"received_rate_node{node}", "Mbit/s", tuple(values), expected)


def _shares(spec: ClusterSpec, result: RunResult) -> Iterable[Check]:
    for rank, report in enumerate(result.reports):
        expected = spec.limits(spec.node_of(rank)).cpu
        yield Check(
            f"CPU share of rank {rank}", f"cpu_share_rank{rank}", "cores", tuple(report["spin_shares"]), expected
        )


def _all_reduce(spec: ClusterSpec, result: RunResult) -> Check:
    # A collective is over when its last rank is done.
    values = [max(times) for times in zip(*(report["all_reduce_seconds"] for report in result.reports), strict=True)]
    bound = ring_all_reduce_seconds(spec, _BYTES) or None
    return Check("all-reduce of 4 MB, against the ring's bound", "all_reduce_4mb", "s", tuple(values), bound)


def _show(spec: ClusterSpec, result: RunResult, checks: Sequence[Check], left: Sequence[str]) -> None:
    title = f"{spec.name}: {spec.nodes} nodes x {spec.ranks_per_node} ranks"
    table = Table(title=title + ("" if result.emulated else " (not emulated: no limits)"), title_justify="left")
    for name in ("what", "configured", "median", "min", "max", "deviation", ""):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    for check in checks:
        table.add_row(
            f"{check.what} ({check.unit})",
            "none" if check.expected is None else f"{check.expected:.4g}",
            *(f"{value:.4g}" for value in (check.median, min(check.values), max(check.values))),
            "" if check.deviation is None else f"{check.deviation:+.1%}",
            "" if check.deviation is None else ("ok" if check.passed else "OUTSIDE"),
        )
    console.print(table)
    if result.emulated and spec.nodes > 1:
        console.print(f"of the deviation of rate and all-reduce, {1 - PAYLOAD_SHARE:.1%} are frame headers")
    console.print(f"other work on the machine meanwhile: {result.background_cores:.2f} cores")
    console.print("left behind: " + ("; ".join(left) if left else "nothing") + "\n")


def _record(spec: ClusterSpec, result: RunResult, checks: Sequence[Check], results: Results) -> None:
    side = "emulated" if result.emulated else "local"
    # Of a repeated cluster, the last attempt counts.
    results.rows = [row for row in results.rows if row.cluster != spec.name]
    results.bounds = [bound for bound in results.bounds if bound.cluster != spec.name]
    for check in checks:
        results.rows.append(row_of("probe", spec.name, side, check.metric, check.unit, check.values))
        if check.expected is not None:
            results.bounds.append(
                Bound(
                    workload="probe",
                    cluster=spec.name,
                    name="configured",
                    metric=check.metric,
                    unit=check.unit,
                    value=check.expected,
                    basis="the cluster's description",
                )
            )
