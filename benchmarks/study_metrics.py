"""From the readings of the ranks to the metrics of a side."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.cluster import ClusterSpec

RATE = "sequences_per_second"
"""The metric that sides are compared by."""

CPU = "cpu_seconds_per_step"
"""The metric that decides where rates differ by less than 5 %."""

SECONDS = "seconds_per_step"
PEAK = "peak_memory"
LOSS = "loss"


def busy(rank: int) -> str:
    """Name of the metric: CPU seconds of a rank over those that its quota allows."""
    return f"busy_share_rank{rank}"


def sent(rank: int) -> str:
    """Name of the metric: bytes that a rank sends over its node's link in a step."""
    return f"sent_bytes_rank{rank}"


def received(rank: int) -> str:
    """Name of the metric: bytes that a rank receives over its node's link in a step."""
    return f"received_bytes_rank{rank}"


def extra(name: str, rank: int) -> str:
    """Name of the metric: what a side reported of itself on a rank."""
    return f"{name}_rank{rank}"


def units_of(spec: ClusterSpec, extras: Mapping[str, str] | None = None) -> dict[str, str]:
    """All metrics and their units.

    Args:
        spec: the cluster.
        extras: units of what sides report of themselves, by name.
    """
    units = {
        RATE: "sequences/s",
        SECONDS: "s",
        CPU: "s",
        PEAK: "bytes",
        LOSS: "",
        "background_cores": "cores",
    }
    for rank in range(spec.world_size):
        units |= {busy(rank): "share of its quota", sent(rank): "bytes/step", received(rank): "bytes/step"}
        units |= {extra(name, rank): unit for name, unit in (extras or {}).items()}
    return units


def metrics_of(
    readings: Sequence[dict[str, Any]], spec: ClusterSpec, global_batch: int, *, step: int | None = None
) -> dict[str, float]:
    """The metrics of one run of one side.

    Args:
        readings: of each rank, as :func:`benchmarks.train_sides.measure` gives them.
        step: of this measured step alone; ``None`` is the mean of all.
        spec: the cluster. Ranks of a node share its link: each gets an equal part of its bytes.
        global_batch: sequences of a step.
    """
    used = [{key: _mean(reading["windows"], key, step) for key in _COUNTERS} for reading in readings]
    seconds = max(window["seconds"] or 0.0 for window in used)
    metrics = {
        RATE: global_batch / seconds,
        SECONDS: seconds,
        CPU: sum(window["cpu_seconds"] or 0.0 for window in used),
        PEAK: float(max(reading["peak_memory_bytes"] for reading in readings)),
    }
    losses = [reading["losses"][-1] for reading in readings if reading["losses"][-1] is not None]
    if losses:
        metrics[LOSS] = fmean(losses)
    for rank, reading in enumerate(readings):
        metrics |= {extra(name, rank): value for name, value in reading.get("extra", {}).items()}
    for rank, window in enumerate(used):
        quota = spec.limits(spec.node_of(rank)).cpu
        if quota is not None:
            metrics[busy(rank)] = (window["cpu_seconds"] or 0.0) / (quota * seconds)
        for name, key in ((sent(rank), "sent_bytes"), (received(rank), "received_bytes")):
            num_bytes = window[key]
            if num_bytes is not None:
                metrics[name] = num_bytes / spec.ranks_per_node
    return metrics


_COUNTERS = ("seconds", "cpu_seconds", "sent_bytes", "received_bytes")


def _mean(windows: Sequence[dict[str, Any]], key: str, step: int | None) -> float | None:
    values = [window[key] for window in (windows if step is None else windows[step : step + 1])]
    return None if None in values else fmean(values)
