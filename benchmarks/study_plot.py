"""The picture of one workload on one cluster: rates with bounds and noise, and how busy every rank was."""

from pathlib import Path

from benchmarks.interleave import control_name
from benchmarks.results import Results, spread
from benchmarks.study_metrics import RATE, busy
from recparallel.errors import ConfigError


def plot_sides(results: Results, workload: str, cluster: str, path: Path, *, base: str) -> None:
    """Draw a bar for each side, the fastest on top, with min and max; its bounds as marks; the base's rate with the
    control's spread as a band; and beside it the busy share of every rank.

    Args:
        results: what to draw.
        workload, cluster: which part.
        path: the PNG file.
        base: the side that the others are compared with.

    Raises:
        ConfigError: nothing was measured there, or matplotlib is not installed.
    """
    pair = (workload, cluster)
    rates = sorted(
        (row for row in results.rows if (row.workload, row.cluster) == pair and row.metric == RATE),
        key=lambda row: row.median,
    )
    if not rates:
        raise ConfigError(f"nothing was measured of {workload} on {cluster}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a plot needs matplotlib: `pip install matplotlib`") from None

    figure = Figure(figsize=(12, 1.6 + 0.42 * len(rates)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    names = [row.side for row in rates]
    whiskers = [[row.median - row.min for row in rates], [row.max - row.median for row in rates]]
    colours = ["tab:gray" if name in (base, control_name(base)) else "tab:blue" for name in names]
    left.barh(names, [row.median for row in rates], xerr=whiskers, capsize=3, color=colours, height=0.6)
    place = {name: position for position, name in enumerate(names)}
    for kind, marker in (("compute", "D"), ("network", "|")):
        points = [
            (bound.value, place[bound.side])
            for bound in results.bounds
            if (bound.workload, bound.cluster, bound.name) == (*pair, kind) and bound.side in place
        ]
        # A bound far beyond every bar says no more than an arrow would, and would squeeze the bars.
        widest = 2.5 * max(row.max for row in rates)
        inside = [point for point in points if point[0] <= widest]
        if inside:
            xs, ys = zip(*inside)
            left.scatter(xs, ys, marker=marker, s=60, color="tab:red", zorder=3, label=f"{kind} bound of the side")
    for bound in results.bounds:
        if (bound.workload, bound.cluster, bound.side) == (*pair, None):
            left.axvline(bound.value, linestyle="--", color="tab:red", label="computing alone, nothing repeated")
    own = next((row for row in rates if row.side == base), None)
    control = next(
        (
            ratio
            for ratio in results.ratios
            if (ratio.workload, ratio.cluster, ratio.side, ratio.metric) == (*pair, control_name(base), RATE)
        ),
        None,
    )
    if own and control:
        noise = spread(control)
        left.axvspan(
            own.median * (1 - noise),
            own.median * (1 + noise),
            color="tab:gray",
            alpha=0.3,
            label=f"noise: the control's spread, {noise:.1%}",
        )
    left.set_xlabel("sequences/s (median, min, max)")
    left.legend(fontsize="small", loc="lower right")
    shares = {(row.side, row.metric): row.median for row in results.rows if (row.workload, row.cluster) == pair}
    rank = 0
    while any((name, busy(rank)) in shares for name in names):
        values = [shares.get((name, busy(rank)), 0.0) for name in names]
        right.scatter(values, names, marker=f"${rank}$", s=50, label=f"rank {rank}")
        rank += 1
    right.set_xlim(0, 1.1)
    right.set_xlabel("busy share of each rank's CPU quota")
    right.grid(axis="y", alpha=0.3)
    where = "" if results.environment.emulated else " (not emulated)"
    figure.suptitle(f"{workload} on {cluster}{where}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
