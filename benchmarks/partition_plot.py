"""The picture of a cut: how long every stage computes in a step, under DeepSpeed's cuts and under ours."""

from pathlib import Path

from benchmarks.results import Results
from benchmarks.study_metrics import extra

_STAGE = "stage_seconds"


def plot_stages(results: Results, workload: str, cluster: str, path: Path) -> None:
    """Draw a group of bars for each side, one bar a rank, as measured; what was predicted of ours as marks.

    Args:
        results: what to draw.
        workload, cluster: which part.
        path: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    own = {
        (row.side, row.metric): row.median for row in results.rows if (row.workload, row.cluster) == (workload, cluster)
    }
    sides = [side for side in dict.fromkeys(side for side, _ in own) if (side, extra(_STAGE, 0)) in own]
    sides = [side for side in sides if "(control)" not in side]
    figure = Figure(figsize=(2 + 2.2 * len(sides), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labelled = False
    for place, side in enumerate(sides):
        rank = 0
        while (side, extra(_STAGE, rank)) in own:
            x = place + (rank - 1.5) * 0.2
            axes.bar(x, own[side, extra(_STAGE, rank)], width=0.18, color=f"C{rank}")
            axes.annotate(str(rank), (x, 0), (0, 2), textcoords="offset points", ha="center", fontsize="small")
            if (predicted := own.get((side, extra(f"predicted_{_STAGE}", rank)))) is not None:
                label = None if labelled else "predicted"
                axes.plot(x, predicted, "k_", markersize=16, markeredgewidth=2, label=label)
                labelled = True
            rank += 1
    axes.set_xticks(range(len(sides)), sides)
    axes.set_ylabel("seconds of computing in a step, by rank")
    axes.set_title(f"{workload} on {cluster}")
    if labelled:
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
