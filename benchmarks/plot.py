"""One picture of a benchmark's results. matplotlib is imported when a picture is drawn, and needed for nothing else."""

from pathlib import Path

from benchmarks.results import Results
from recparallel.errors import ConfigError


def plot_metric(results: Results, metric: str, path: Path, *, title: str = "") -> None:
    """Draw a metric of every side as bars, a panel for each workload and cluster, with min and max, and the bounds as
    lines.

    Args:
        results: what to draw.
        metric: its name in the rows.
        path: the PNG file.
        title: above the picture; the benchmark's name if left out.

    Raises:
        ConfigError: no row has this metric, or matplotlib is not installed.
    """
    rows = [row for row in results.rows if row.metric == metric]
    if not rows:
        known = sorted({row.metric for row in results.rows})
        raise ConfigError(f"metric: given {metric!r}; measured are {', '.join(known) or 'none'}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a plot needs matplotlib: `pip install matplotlib`") from None

    panels = list(dict.fromkeys((row.workload, row.cluster) for row in rows))
    figure = Figure(figsize=(max(5.0, 4.5 * len(panels)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (workload, cluster) in zip(axes, panels, strict=True):
        own = [row for row in rows if (row.workload, row.cluster) == (workload, cluster)]
        medians = [row.median for row in own]
        whiskers = [[row.median - row.min for row in own], [row.max - row.median for row in own]]
        axis.bar([row.side for row in own], medians, yerr=whiskers, capsize=4, color="tab:blue", width=0.6)
        for number, bound in enumerate(results.bounds):
            if (bound.workload, bound.cluster, bound.metric) == (workload, cluster, metric):
                axis.axhline(bound.value, linestyle="--", color=f"C{number % 9 + 1}", label=f"{bound.name} bound")
        axis.set_title(f"{workload} on {cluster}")
        axis.set_ylabel(f"{metric} ({own[0].unit})")
        axis.tick_params(axis="x", rotation=30)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.suptitle(title or results.benchmark)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
