"""Recommendations over the time of two trainings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.sasrec_trainer import Point


def plot_points(points: Mapping[str, Sequence[Point]], path: Path) -> None:
    """NDCG@10 of the test items over minutes of training.

    Args:
        points: by training.
        path: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, own in points.items():
        axes.plot([point.seconds / 60 for point in own], [point.ndcg for point in own], marker="o", label=name)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("NDCG@10, all items ranked")
    axes.set_ylim(bottom=0)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
