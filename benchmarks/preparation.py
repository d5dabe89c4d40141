"""``python -m benchmarks preparation``: what it takes to prepare a log of 50 million interactions.

A log in MovieLens-32M's format is generated: 400,000 users with lengths of a log-normal distribution, 100,000 items by a Zipf
law, rows in the order of time, so that each user's are all over the file. A process of its own prepares it, and then opens what
it has prepared, cuts windows, and reads a thousand batches of them, as a training would. Seconds, and the most memory that the
process held, files that it had mapped included.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.environment import capture_environment
from benchmarks.errors import RunError
from benchmarks.options import Options
from benchmarks.output import console, print_lines
from benchmarks.results import Results, Row, row_of
from benchmarks.study_tables import markdown_table, write_between_markers

DOCUMENT = Path("docs") / "data.md"
COLUMNS = ("interactions", "GiB of text", "work", "seconds", "most memory, GiB")
_EVENTS, _QUICK_EVENTS = 50_000_000, 2_000_000
_EVENTS_A_USER = 125
_NUM_ITEMS = 100_000
_AT_ONCE = 1_000_000
_FIRST_SECOND = 1_200_000_000


def run(options: Options) -> int:
    """Generate, prepare, read.

    Returns:
        0, whatever came out.

    Raises:
        RunError: the process failed.
    """
    results = Results(benchmark="preparation", environment=capture_environment(options.command, emulated=False))
    events = _QUICK_EVENTS if options.quick else _EVENTS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_log(folder, events)
        found = measure(folder)
    results.rows += rows_of(events, size, found)
    lines = lines_of(results)
    print_lines(COLUMNS, lines)
    if options.json:
        results.save(options.json)
        if not options.quick and options.json.resolve().parent == (DOCUMENT.parent / "results").resolve():
            write_between_markers(DOCUMENT, markdown_table(COLUMNS, lines), name="preparation")
    return 0


def write_log(folder: Path, events: int, *, seed: int = 0) -> int:
    """Write ``ratings.csv`` and ``movies.csv``; returns the bytes of both."""
    generator = np.random.default_rng(seed)
    users = max(1, events // _EVENTS_A_USER)
    weights = generator.lognormal(sigma=1.2, size=users)
    user_ends = np.cumsum(weights / weights.sum())
    popularity = 1 / (np.arange(_NUM_ITEMS) + 20.0)
    item_ends = np.cumsum(popularity / popularity.sum())
    names = generator.permutation(_NUM_ITEMS) + 1
    with (
        (folder / "ratings.csv").open("w") as file,
        tqdm(total=events, desc="generate", unit="row", unit_scale=True) as bar,
    ):
        file.write("userId,movieId,rating,timestamp\n")
        for first in range(0, events, _AT_ONCE):
            count = min(_AT_ONCE, events - first)
            user = np.searchsorted(user_ends, generator.random(count)).clip(max=users - 1) + 1
            item = names[np.searchsorted(item_ends, generator.random(count)).clip(max=_NUM_ITEMS - 1)]
            rating = generator.integers(1, 11, size=count) / 2
            second = _FIRST_SECOND + (first + np.arange(count)) * 400_000_000 // events
            rows = zip(user.tolist(), item.tolist(), rating.tolist(), second.tolist())
            file.write("".join(f"{u},{i},{r},{t}\n" for u, i, r, t in rows))
            bar.update(count)
    lines = [f'{number},"The Film, No. {number} (1999)",Drama|Comedy\n' for number in range(1, _NUM_ITEMS + 1)]
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(lines))
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(folder: Path) -> dict[str, list[float]]:
    """Prepare and read in processes of their own; seconds and MiB of each work.

    Raises:
        RunError: one failed.
    """
    found = {}
    for work in ("prepare", "find again", "read"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.preparation", work, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "POLARS_MAX_THREADS": str(len(os.sched_getaffinity(0)))},
        )
        if done.returncode:
            raise RunError(f"{work} ended with {done.returncode}")
        found[work] = json.loads(done.stdout.splitlines()[-1])
        console.print(f"{work}: {found[work][0]:.1f} s, {found[work][1] / 1024:.2f} GiB")
    return found


def rows_of(events: int, size: int, found: dict[str, list[float]]) -> list[Row]:
    """Readings, by work."""
    rows = []
    for work, (seconds, mib) in found.items():
        place = f"{events} interactions, {size} bytes", "local", work
        rows.append(row_of(*place, "seconds", "s", [seconds]))
        rows.append(row_of(*place, "peak_mib", "MiB", [mib]))
    return rows


def lines_of(results: Results) -> list[list[str]]:
    """The table's lines."""
    found = {(row.side, row.metric): row for row in results.rows}
    lines = []
    for side in dict.fromkeys(row.side for row in results.rows):
        events, size = (int(word) for word in found[side, "seconds"].workload.replace(",", "").split()[::2])
        seconds, mib = found[side, "seconds"].median, found[side, "peak_mib"].median
        lines.append([f"{events:,}", f"{size / 2**30:.2f}", side, f"{seconds:.1f}", f"{mib / 1024:.2f}"])
    return lines


def _work(work: str, folder: Path) -> None:
    import resource

    from recparallel.data.batching import WindowLoader
    from recparallel.data.preparation import prepare
    from recparallel.data.sampler import GlobalBatchSampler
    from recparallel.data.splits.leave_one_out import leave_one_out

    start = time.perf_counter()
    prepared = prepare("movielens-32m", folder, folder=folder / "prepared", progress=work == "prepare")
    if work == "read":
        start = time.perf_counter()
        windows = leave_one_out(prepared.histories()).train_windows(200)
        sampler = GlobalBatchSampler(
            len(windows), micro_batch=64, num_micro_batches=1, num_replicas=1, replica=0, seed=0
        )
        for _ in zip(range(1000), WindowLoader(windows, sampler, max_length=200)):
            pass
    seconds = time.perf_counter() - start
    sys.stdout.write(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]) + "\n")


if __name__ == "__main__":
    _work(sys.argv[1], Path(sys.argv[2]))
