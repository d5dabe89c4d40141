"""``python -m benchmarks sasrec --peer CHECKOUT``: recommendations over time, beside pmixer/SASRec.pytorch.

MovieLens-1M, the same histories and cores. Both trainings take turns of some minutes; between turns each ranks the whole catalogue
for every user, off the clock. SASRec trains as its README says (``--maxlen=200 --dropout_rate=0.2``, otherwise its defaults), from
its own code in ``CHECKOUT``; ours is a card of the zoo.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.results import Results, row_of
from benchmarks.sasrec_plot import plot_points
from benchmarks.sasrec_trainer import Point, Trainer
from benchmarks.sasrec_trainers import Ours, Theirs
from benchmarks.study_tables import markdown_table, write_between_markers
from benchmarks.workloads import DATA, data_folder

DOCUMENT = Path("docs") / "model_zoo.md"
COLUMNS = ("training", "minutes", "epochs", "histories/s", "targets/s", "HR@10", "NDCG@10")
_TURNS, _SECONDS = 10, 180.0


def run(options: Options) -> int:
    """Train both, and print.

    Returns:
        0; 1 without the data or the checkout.
    """
    data = data_folder() / "ml-1m"
    if not data.is_dir():
        console.print(f"MovieLens-1M is not in {data}; set {DATA}")
        return 1
    if options.peer is None or not (options.peer / "python" / "model.py").is_file():
        console.print(
            f"--peer {options.peer}: give the path of a checkout of pmixer/SASRec.pytorch (with python/model.py)"
        )
        return 1
    turns, seconds = (1, 10.0) if options.quick else (options.rounds or _TURNS, _SECONDS)
    console.print(f"expected duration: {2 * turns * (seconds + 20) / 60:.0f} minutes")
    compile_extension()
    points: dict[str, list[Point]] = {}
    with ExitStack() as stack:
        trainers = {
            name: stack.enter_context(Trainer(start, data.resolve(), options.peer.resolve()))
            for name, start in (("recparallel, llama-ml1m", Ours), ("SASRec.pytorch", Theirs))
        }
        for turn in range(1, turns + 1):
            for name, trainer in trainers.items():
                point = trainer.turn(seconds)
                points.setdefault(name, []).append(point)
                console.print(
                    f"  turn {turn} of {turns}, {name}: {point.seconds / 60:.1f} minutes, {point.epochs:.1f} epochs, "
                    f"NDCG@10 {point.ndcg:.4f}",
                    markup=False,
                )
    lines = lines_of(points)
    print_lines(COLUMNS, lines)
    if options.json:
        results = Results(benchmark="sasrec", environment=capture_environment(options.command, emulated=False))
        for name, own in points.items():
            for number, point in enumerate(own, 1):
                for metric, unit, value in (
                    ("seconds", "s", point.seconds),
                    ("epochs", "", point.epochs),
                    ("sequences_per_second", "1/s", point.sequences / point.seconds),
                    ("hr@10", "", point.hr),
                    ("ndcg@10", "", point.ndcg),
                ):
                    results.rows.append(
                        row_of("ml-1m", "one machine", name, f"{metric} at turn {number}", unit, [value])
                    )
        results.save(options.json)
        plot_points(points, options.json.with_suffix(".png"))
        if not options.quick and options.json.resolve().parent == DOCUMENT.parent.resolve() / "results":
            write_between_markers(DOCUMENT, markdown_table(COLUMNS, lines), name="sasrec")
    return 0


def lines_of(points: Mapping[str, Sequence[Point]]) -> list[tuple[str, ...]]:
    """Of each training the half and the end of its time."""
    return [
        (
            name,
            f"{point.seconds / 60:.1f}",
            f"{point.epochs:.1f}",
            f"{point.sequences / point.seconds:.0f}",
            f"{point.targets / point.seconds:,.0f}",
            f"{point.hr:.4f}",
            f"{point.ndcg:.4f}",
        )
        for name, own in points.items()
        for point in dict.fromkeys((own[(len(own) - 1) // 2], own[-1]))
    ]
