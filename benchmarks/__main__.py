"""``python -m benchmarks NAME``: run a benchmark, or list those that exist."""

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.clusters import CLUSTERS, get_cluster
from benchmarks.options import Options
from benchmarks.output import set_up_logging
from benchmarks.registry import BENCHMARKS, get_benchmark
from benchmarks.workloads import WORKLOADS, get_workload
from recparallel.errors import RecParallelError


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark.

    Args:
        arguments: the command line after ``python -m benchmarks``; the process's own if left out.

    Returns:
        The exit code: 0 is success, 1 a measurement that is not as it should be, 2 a wrong request or missing rights.
    """
    words = sys.argv[1:] if arguments is None else arguments
    given = _parser().parse_args(words)
    set_up_logging()
    try:
        entry = get_benchmark(given.name)
        options = Options(
            quick=given.quick,
            json=given.json,
            clusters=tuple(get_cluster(name) for name in given.cluster),
            workloads=tuple(get_workload(name).name for name in given.workload),
            sides=tuple(given.side),
            local=given.local,
            fresh=given.fresh,
            rounds=given.rounds,
            peer=given.peer,
            command=shlex.join(["python", "-m", "benchmarks", *words]),
        )
        return int(importlib.import_module(entry.module).run(options))
    except RecParallelError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False)
        return 2


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {entry.name:<12} {entry.summary}" for entry in BENCHMARKS.values())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measure on an emulated cluster.\n\nbenchmarks:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="the benchmark")
    parser.add_argument("--quick", action="store_true", help="end within 3 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="NAME",
        help=f"may be repeated; {', '.join(CLUSTERS)}, or a .yaml file that describes one",
    )
    parser.add_argument(
        "--workload", action="append", default=[], metavar="NAME", help=f"may be repeated; {', '.join(WORKLOADS)}"
    )
    parser.add_argument(
        "--side",
        action="append",
        default=[],
        metavar="NAME",
        help="may be repeated; compare these alone with the base, for a closer look with more --rounds",
    )
    parser.add_argument("--local", action="store_true", help="plain processes, no limits; marked so in the results")
    parser.add_argument("--fresh", action="store_true", help="do not go on from what an interrupted run has measured")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of all sides")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="sasrec: a checkout of pmixer/SASRec.pytorch")
    return parser


if __name__ == "__main__":
    sys.exit(main())
