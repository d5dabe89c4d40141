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
    """Set torch's threads on this rank and return their number.

    ``threads`` if given, else ``OMP_NUM_THREADS`` if set, else an equal share of the cores. Cores that the launcher
    bound to this rank (``--bind_cores_to_rank``) are its share already.
    """
    chosen = threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or _own_share()
    torch.set_num_threads(chosen)
    return chosen


def _own_share() -> int:
    cores = len(os.sched_getaffinity(0))
    if cores < (os.cpu_count() or cores):
        return cores
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1))


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
        remove_shared_memory()
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)  # destructors of a broken process group may hang
    if dist.is_initialized():
        dist.destroy_process_group()
    remove_shared_memory()


def remove_shared_memory() -> None:
    """Remove this rank's all-reduce buffer, 66 MiB of memory that DeepSpeed 0.19 makes on CPUs and never removes."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    own = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{os.environ.get('RANK', '0')}"
    Path("/dev/shm", own).unlink(missing_ok=True)


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
