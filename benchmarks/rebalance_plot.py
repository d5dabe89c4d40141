"""Pictures of live rebalancing: what each step and each stage takes, and single steps instruction by instruction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rebalance_story import Schedule

_COLOURS = {"forward": "tab:blue", "backward": "tab:green", "optimizer": "tab:purple"}
_WAITS = {"recv_activation", "recv_grad", "send_activation", "send_grad", "reduce_tied", "reduce", "finish_transfers"}


def plot_steps(reports: Sequence[dict[str, Any]], at: Schedule, optimum: float | None, path: Path) -> None:
    """Seconds of every step, and of the passes of each stage in it; when the node changed, and when layers moved.

    Args:
        reports: of :mod:`benchmarks.rebalance_rank`, by rank.
        at: when the node was slow.
        optimum: seconds of a step with the best cut for the slow node, if it was measured beside.
        path: the PNG file.
    """
    figure, axes = _figure(9, 4.5)
    numbers = range(1, len(reports[0]["steps"]) + 1)
    for rank, report in enumerate(reports):
        axes.plot(
            numbers, [step["stage_seconds"] for step in report["steps"]], linewidth=1, label=f"stage of rank {rank}"
        )
    axes.plot(numbers, [step["seconds"] for step in reports[0]["steps"]], "k.-", label="step")
    axes.axvspan(at.slow, at.recovered, color="0.92", label="one node at half speed")
    if optimum is not None:
        axes.hlines(optimum, at.slow, at.recovered, "tab:red", "dashed", label="step, cut anew")
    for move in reports[0]["moves"]:
        axes.axvline(
            move["step"] + 0.5, color="tab:orange", label=f"move to {'/'.join(map(str, _sizes(move['after'])))}"
        )
    axes.set_xlabel("step")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="x-small", ncols=2)
    _save(figure, path)


def plot_timelines(reports: Sequence[dict[str, Any]], at: Schedule, path: Path) -> None:
    """A step before the change, one with the slow node, and one behind the move, rank by rank."""
    figure, grid = _figure(10, 1.2 + 0.45 * 3 * len(reports), rows=3)
    titles = ("before", "one node at half speed", "moved")
    traced = [(title, str(number)) for title, number in zip(titles, at.traced)]
    longest = 0.0
    for axes, (title, number) in zip(grid, traced):
        begin = min(start for report in reports for _, start, _ in report["spans"][number])
        for rank, report in enumerate(reports):
            for name, start, end in report["spans"][number]:
                colour = _COLOURS.get(name, "0.85" if name in _WAITS else None)
                if colour is not None:
                    axes.barh(rank, end - start, left=start - begin, height=0.8, color=colour)
                longest = max(longest, end - begin)
        axes.set_yticks(range(len(reports)), [f"rank {rank}" for rank in range(len(reports))])
        axes.invert_yaxis()
        axes.set_title(f"step {number}: {title}", fontsize="medium", loc="left")
    for axes in grid:
        axes.set_xlim(0, longest)
    grid[-1].set_xlabel("seconds (blue forward, green backward, violet optimizer, grey waits)")
    _save(figure, path)


def _sizes(bounds: Sequence[int]) -> list[int]:
    return [b - a for a, b in zip(bounds, bounds[1:])]


def _figure(width: float, height: float, *, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
