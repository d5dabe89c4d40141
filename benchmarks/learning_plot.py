"""Losses over steps, and over the seconds that these would take on a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Panel:
    """Losses over time, on one cluster.

    Attributes:
        cluster: its name.
        times: when each step is done, by side.
        end: where the panel ends, in seconds.
    """

    cluster: str
    times: Mapping[str, Sequence[float]]
    end: float


def plot_curves(curves: Mapping[str, Sequence[float]], clusters: Sequence[Panel], path: Path) -> None:
    """A panel over steps, and one for each cluster over seconds.

    Args:
        curves: losses of every step, by side.
        clusters: further panels.
        path: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * (1 + len(clusters)), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + len(clusters), squeeze=False, sharey=True)[0]
    for number, (side, losses) in enumerate(curves.items()):
        panels[0].plot(range(1, len(losses) + 1), losses, color=f"C{number}", label=side)
        for axes, each in zip(panels[1:], clusters):
            axes.plot(each.times[side], losses[: len(each.times[side])], color=f"C{number}")
    panels[0].set_xlabel("steps")
    panels[0].set_ylabel("loss")
    panels[0].legend(fontsize="x-small")
    for axes, each in zip(panels[1:], clusters):
        axes.set_xlim(0, each.end or 1.0)
        axes.set_xlabel(f"seconds on {each.cluster}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
