"""Losses over steps, and over the seconds that these would take on a cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class HasSpeeds(Protocol):
    """Seconds of a step by side, on a cluster."""

    @property
    def cluster(self) -> str:
        """Its name."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """By side."""


def plot_curves(curves: Mapping[str, Sequence[float]], speeds: Sequence[HasSpeeds], path: Path) -> None:
    """A panel over steps, and one for each cluster over seconds, up to where the fastest side ends.

    Args:
        curves: losses of every step, by side.
        speeds: of clusters.
        path: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * (1 + len(speeds)), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + len(speeds), squeeze=False, sharey=True)[0]
    for number, (side, losses) in enumerate(curves.items()):
        panels[0].plot(range(1, len(losses) + 1), losses, color=f"C{number}", label=side)
        for axes, each in zip(panels[1:], speeds):
            if side in each.seconds:
                seconds = [each.seconds[side] * step for step in range(1, len(losses) + 1)]
                axes.plot(seconds, losses, color=f"C{number}")
    panels[0].set_xlabel("steps")
    panels[0].set_ylabel("loss")
    panels[0].legend(fontsize="x-small")
    for axes, each in zip(panels[1:], speeds):
        known = [each.seconds[side] * len(losses) for side, losses in curves.items() if side in each.seconds]
        axes.set_xlim(0, min(known, default=1.0))
        axes.set_xlabel(f"seconds on {each.cluster}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
