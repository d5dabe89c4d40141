"""The limits beside each side's rate: what its computing and what its links allow."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.bounds import compute_seconds, network_seconds
from benchmarks.choices import Trial
from benchmarks.cluster import ClusterSpec
from benchmarks.peers.sides import ALONE, Side
from benchmarks.peers.trainer import Setting
from benchmarks.results import Bound, Row
from benchmarks.study_metrics import RATE, received, sent
from benchmarks.tuning import ALONE_BATCH
from benchmarks.workloads import Workload


def bounds_of(
    rows: Sequence[Row],
    sides: Sequence[Side],
    settings: Mapping[str, Setting],
    spec: ClusterSpec,
    workload: Workload,
    alone: Sequence[Trial],
) -> list[Bound]:
    """Both bounds of every side that ran, and the compute bound of a job that wastes nothing.

    Args:
        rows: of all sides, with wire bytes.
        sides: those of the workload.
        settings: at which they ran.
        spec, workload: where, and what.
        alone: trials of the process alone.
    """
    found = list(_compute(rows, sides, settings, spec, workload, alone))
    found += _network(rows, sides, spec, workload)
    return found


def step_core_seconds(trial: Trial, *, global_batch: int, updates: int) -> float:
    """CPU seconds of a step: every sequence forward and backward once, every weight updated ``updates`` times."""
    return trial.cpu_seconds * global_batch / ALONE_BATCH + updates * (trial.update_cpu_seconds or 0.0)


def _compute(
    rows: Sequence[Row],
    sides: Sequence[Side],
    settings: Mapping[str, Setting],
    spec: ClusterSpec,
    workload: Workload,
    alone: Sequence[Trial],
) -> Iterator[Bound]:
    if spec.total_cores is None:
        return
    batch = workload.global_batch
    dense = [trial for trial in alone if trial.side == ALONE[False].name and trial.seconds is not None]
    if dense:
        cost = {trial: step_core_seconds(trial, global_batch=batch, updates=1) for trial in dense}
        best = min(dense, key=lambda trial: cost[trial])
        basis = (
            f"{cost[best]:.2f} CPU seconds a step on one core ({best.setting}), spread over {spec.total_cores:g} cores"
        )
        yield _bound(spec, workload, "compute", batch / compute_seconds(cost[best], spec), basis, None)
    for side in sides:
        kind = ALONE[bool(side.options.get("sparse"))].name
        own = [
            trial
            for trial in alone
            if trial.side == kind and trial.seconds is not None and trial.precision == settings[side.name].precision
        ]
        if not own or not any(row.side == side.name for row in rows):
            continue
        updates = side.updates(spec.world_size)
        seconds = min(step_core_seconds(trial, global_batch=batch, updates=updates) for trial in own)
        basis = (
            f"{seconds:.2f} CPU seconds a step on one core ({own[0].precision}, {updates} updates of each weight), "
            f"spread over {spec.total_cores:g} cores"
        )
        yield _bound(spec, workload, "compute", batch / compute_seconds(seconds, spec), basis, side.name)


def _network(rows: Sequence[Row], sides: Sequence[Side], spec: ClusterSpec, workload: Workload) -> Iterator[Bound]:
    medians = {(row.side, row.metric): row.median for row in rows}
    for side in sides:
        if (side.name, sent(0)) not in medians:
            continue
        by_node = {
            node: max(sum(medians[side.name, way(rank)] for rank in spec.ranks_of(node)) for way in (sent, received))
            for node in range(spec.nodes)
        }
        seconds = network_seconds(spec, by_node)
        if seconds:
            basis = f"{max(by_node.values()) / 1e6:.1f} MB a step over the busiest link, counted at the interface"
            yield _bound(spec, workload, "network", workload.global_batch / seconds, basis, side.name)


def _bound(spec: ClusterSpec, workload: Workload, name: str, value: float, basis: str, side: str | None) -> Bound:
    return Bound(
        workload=workload.name,
        cluster=spec.name,
        name=name,
        metric=RATE,
        unit="sequences/s",
        value=value,
        basis=basis,
        side=side,
    )
