"""``python -m benchmarks click``: the click task of TALLRec's movies, with a trunk that is trained here from scratch.

64, 256 and all 8,000 training prompts, three seeds each: of the draw of prompts, the initial weights and the order. Each training
is kept under ``runs/click`` as soon as it is done: the same command goes on where it was stopped. The figures published for
TALLRec and its baselines stand beside ours; theirs start from LLaMA-7B, or from all interactions.
"""

import json
import statistics
from pathlib import Path

from benchmarks.environment import capture_environment
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.recipes import train
from benchmarks.results import Results, row_of
from benchmarks.study_tables import markdown_table, write_between_markers
from benchmarks.workloads import DATA, data_folder

DOCUMENT = Path("docs") / "click.md"
RUNS = Path("runs") / "click"
SIZES: dict[str, tuple[int | None, int]] = {"64": (64, 60), "256": (256, 40), "8000": (None, 6)}
"""Training prompts, and epochs: small sets need more of them."""

PUBLISHED = (
    ("TALLRec (LLaMA-7B, LoRA)", ".6748", ".7198", ""),
    ("DROS-BERT", ".5171", ".5394", ""),
    ("SASRec", ".5048", ".5225", ""),
)
"""AUC with 64 and 256 prompts: Bao et al., RecSys 2023, and the repository that goes with it."""

COLUMNS = ("model", "64 prompts", "256 prompts", "8,000 prompts")
_SEEDS = (1, 2, 3)


def run(options: Options) -> int:
    """Train what is missing, and print.

    Returns:
        0 if all trainings ended, whatever came out; 1 without the data.
    """
    folder = data_folder() / "tallrec-movie"
    if not folder.is_dir():
        console.print(f"TALLRec's movie prompts are not in {folder}; set {DATA}")
        return 1
    sizes, seeds = (("64",), (1,)) if options.quick else (tuple(SIZES), _SEEDS)
    for size in sizes:
        for seed in seeds:
            to = RUNS / f"{size}-{seed}"
            if options.fresh or not (to / "metrics.json").is_file():
                count, epochs = SIZES[size]
                arguments = {
                    "data_dir": str(folder),
                    **({} if count is None else {"num_train_prompts": str(count), "sample_seed": str(seed)}),
                    "num_train_epochs": str(epochs),
                    "eval_epochs": "0",
                    "seed": str(seed),
                    "report_to": "none",
                    "output_dir": str(to),
                }
                train("train_click.py", arguments, processes=1)
            console.print(f"  {size} prompts, seed {seed}: AUC {_auc(to):.4f}")
    found = {size: [_auc(RUNS / f"{size}-{seed}") for seed in seeds] for size in sizes}
    cells = [_cell(found[size]) if size in found else "" for size in SIZES]
    lines = [("ours, from scratch, no LLM, no interactions beside the prompts", *cells), *PUBLISHED]
    print_lines(COLUMNS, lines)
    if options.json:
        results = Results(benchmark="click", environment=capture_environment(options.command, emulated=False))
        for size, values in found.items():
            results.rows.append(row_of("tallrec-movie", "one local process", f"{size} prompts", "auc", "", values))
        results.save(options.json)
        if not options.quick and options.json.resolve().parent == DOCUMENT.parent.resolve() / "results":
            write_between_markers(DOCUMENT, markdown_table(COLUMNS, lines), name="click")
    return 0


def _auc(folder: Path) -> float:
    return float(json.loads((folder / "metrics.json").read_text())["auc"])


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f}–{max(values):.4f})"
