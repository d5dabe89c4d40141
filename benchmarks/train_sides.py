"""``python -m benchmarks.train_sides JOBS``: what each rank runs: sides one after the other, each built, warmed up,
measured and taken down. The report grows with every side, so that a crash loses only the side that crashed.

Progress is told in phases: 2 i + 1 while side i is built and warmed up, 2 i + 2 while it is measured. On them hang the
changes by which :mod:`benchmarks.launches` lifts the link's limit for the first, which would take as long again.
"""

import contextlib
import ctypes
import faulthandler
import gc
import json
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import rank as bench
from benchmarks.peers.sides import get_side
from benchmarks.peers.trainer import Job

# The cluster looks at the phase every 0.1 s.
_LIMIT_SECONDS = 0.4
_TIMEOUT = timedelta(seconds=240)
# Groups that a peer makes have timeouts of their own, of half an hour: what hangs must not cost the benchmark its time.
_JOB_SECONDS = 300


def main(jobs: list[Job]) -> None:
    """Run every job and report.

    Args:
        jobs: in order. The report is ``{"started": [labels], "done": {label: readings}}``.
    """
    torch.set_num_threads(1)
    _join()
    report: dict[str, Any] = {"started": [], "done": {}}
    for index, job in enumerate(jobs):
        report["started"].append(job.label)
        bench.write_report(report)
        faulthandler.dump_traceback_later(_JOB_SECONDS, exit=True)
        report["done"][job.label] = measure(job, phase=2 * index + 1)
        faulthandler.cancel_dump_traceback_later()
        bench.write_report(report)
    dist.barrier()
    dist.destroy_process_group()


def measure(job: Job, *, phase: int = 1) -> dict[str, Any]:
    """Build a side, train, and take it down.

    Args:
        job: the side.
        phase: that is reported while it is built and warmed up; the next one while it is measured.

    Returns:
        ``windows``: for each measured step ``seconds``, ``cpu_seconds``, ``sent_bytes``, ``received_bytes`` and
        ``loopback_bytes``; ``warmup_seconds`` of each step before; ``losses`` of all steps; ``optimizer_cpu_seconds`` of
        the measured ones, where known; ``extra``, the medians of what the side reports of itself in them;
        ``peak_memory_bytes`` since before the side was built; ``total_seconds`` with everything.
    """
    began = time.monotonic()
    _forget_peak()
    bench.report_step(phase)
    trainer = get_side(job.side).build(job, job.spec.recommender())
    losses, updates = [], []
    windows: list[dict[str, Any]] = []
    extras: list[dict[str, float]] = []
    for number in range(job.warmup + job.steps):
        if number == job.warmup:
            dist.barrier()
            bench.report_step(phase + 1)
            time.sleep(_LIMIT_SECONDS)
        # A collective is over when the last rank is done: all start and stop together.
        dist.barrier()
        start = bench.read()
        result = trainer.step(number)
        dist.barrier()
        windows.append(asdict(bench.read() - start))
        losses.append(None if result.loss is None else float(result.loss))
        if result.optimizer_cpu_seconds is not None:
            updates.append(result.optimizer_cpu_seconds)
        extras.append(result.extra)
    peak = _peak()
    trainer.close()
    del trainer
    _give_memory_back()
    return {
        "windows": windows[job.warmup :],
        "warmup_seconds": [window["seconds"] for window in windows[: job.warmup]],
        "optimizer_cpu_seconds": updates[job.warmup :],
        "losses": losses,
        "extra": {name: median(each[name] for each in extras[job.warmup :]) for name in extras[-1]},
        "peak_memory_bytes": peak,
        "total_seconds": time.monotonic() - began,
    }


def _join() -> None:
    """One process group for all jobs; DeepSpeed takes the one that is there."""
    dist.init_process_group("gloo", timeout=_TIMEOUT)


def _forget_peak() -> None:
    # The kernel keeps one high-water mark a process; "5" starts it anew.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _give_memory_back() -> None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


if __name__ == "__main__":
    main([Job.from_json(content) for content in json.loads(sys.argv[1])])
