"""The frame around a training program under the ``deepspeed`` launcher: threads, first error on top, clean end."""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from recparallel.errors import RecParallelError


def set_threads(threads: int | None = None) -> int:
    """Set torch's threads on this rank: ``threads``, or an equal share of the machine's cores. Returns the number."""
    share = max(
        1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    )
    torch.set_num_threads(threads or share)
    return threads or share


@contextmanager
def running(output_dir: Path) -> Iterator[None]:
    """Run the block on this rank; end together.

    On success all ranks meet at a barrier and leave the process group. On an error the rank writes
    ``output_dir/errors/rank_N.txt``, says whether it failed first or follows another rank, and exits with code 1 at
    once, which makes the launcher stop the other ranks.
    """
    rank = int(os.environ.get("RANK", "0"))
    reports = output_dir / "errors"
    try:
        yield
        if dist.is_initialized():
            dist.barrier()
    except Exception as error:
        _report(error, rank, reports)
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)  # destructors of a broken process group may hang
    if dist.is_initialized():
        dist.destroy_process_group()


def clear_reports(output_dir: Path) -> None:
    """Remove reports of an earlier run."""
    for path in (output_dir / "errors").glob("rank_*.txt"):
        path.unlink(missing_ok=True)


def _report(error: Exception, rank: int, reports: Path) -> None:
    now = time.time()
    text = str(error) if isinstance(error, RecParallelError) else traceback.format_exc()
    reports.mkdir(parents=True, exist_ok=True)
    earlier = _first_other(reports, rank)
    (reports / f"rank_{rank}.txt").write_text(f"{now:.6f}\n{text}")
    if earlier is not None:
        sys.stderr.write(f"[rank {rank}] stops: rank {earlier} failed first, see {reports / f'rank_{earlier}.txt'}\n")
    elif "Connection closed by peer" in text or "Connection reset by peer" in text:
        sys.stderr.write(
            f"[rank {rank}] lost a peer: another rank died without an error of its own (killed?)\n{text}\n"
        )
    else:
        sys.stderr.write(f"[rank {rank}] first error: {type(error).__name__}: {text}\n")


def _first_other(reports: Path, rank: int) -> int | None:
    """The rank that reported first, if another one has."""
    times = {
        int(path.stem.removeprefix("rank_")): float(path.read_text().partition("\n")[0] or "inf")
        for path in reports.glob("rank_*.txt")
    }
    times.pop(rank, None)
    return min(times, key=times.__getitem__, default=None)
