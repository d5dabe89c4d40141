"""Run jobs on a cluster, many in one launch, and go on behind a side that crashes."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cluster import Change, Cluster, RunResult
from benchmarks.errors import RunError
from benchmarks.extension import extension_environment, remove_stale_lock
from benchmarks.peers.sides import get_side
from benchmarks.peers.trainer import Job

RankReadings = list[dict[str, Any]]
"""What :func:`benchmarks.train_sides.measure` gave on every rank."""

# What Python prints of an exception, the C++ runtime before it aborts, and faulthandler of a job that hangs.
_ERROR_LINE = re.compile(
    r"^(?:\[rank\d+\]:? *)?((?:[\w.]*(?:Error|Exception|Interrupt)\b|\s+what\(\)):.*|Timeout \(.*)$", re.MULTILINE
)
_BLAMED = re.compile(r"rank (\d+) (?:failed|was killed)")
_LONGEST = 300


@dataclass
class Launched:
    """What came of some jobs.

    Attributes:
        done: each rank's readings, by label.
        failed: why a job did not run, by label: the first rank's error line.
        background_cores: what else the machine did, of the last run.
    """

    done: dict[str, RankReadings] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    background_cores: float = 0.0


def run_jobs(cluster: Cluster, jobs: Sequence[Job], *, seconds_per_job: float = 120.0) -> Launched:
    """Run all jobs in one launch; where one crashes, note why and launch the rest again.

    Args:
        cluster: entered already.
        jobs: in order.
        seconds_per_job: time that one may take at most, on average; then the launch is stopped and the job that ran is
            the one that failed.

    Raises:
        RunError: the ranks do not even get to the first job.
    """
    launched = Launched()
    remaining = list(jobs)
    while remaining:
        content = json.dumps([job.to_json() for job in remaining])
        remove_stale_lock()
        result = cluster.run(
            [sys.executable, "-m", "benchmarks.train_sides", content],
            timeout=60 + seconds_per_job * len(remaining),
            changes=_open_links_while_building(cluster, remaining),
            environment={
                **extension_environment(),
                "PYTHONWARNINGS": "ignore",
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
            },
        )
        launched.background_cores = result.background_cores
        labels = [job.label for job in remaining]
        for label in labels:
            if all(label in report.get("done", {}) for report in result.reports):
                launched.done[label] = [report["done"][label] for report in result.reports]
        remaining = [job for job in remaining if job.label not in launched.done]
        if result.error is None:
            break
        if not remaining:  # all measured; what went wrong was the taking down
            break
        crashed = remaining[0]
        if not any(crashed.label in report.get("started", ()) for report in result.reports):
            raise RunError(result.error)
        launched.failed[crashed.label] = first_error_line(result)
        remaining = remaining[1:]
    return launched


def _open_links_while_building(cluster: Cluster, jobs: Sequence[Job]) -> list[Change] | None:
    """No link limit while a side is built and warmed up, unless it measures links then; the described one while it is
    measured."""
    if not cluster.emulated:
        return None
    changes = []
    for index, job in enumerate(jobs):
        for node in range(cluster.spec.nodes):
            rate = cluster.spec.limits(node).link_mbit
            if rate is not None:
                building = rate if get_side(job.side).measures else None
                changes.append(Change(at_step=2 * index + 1, node=node, link_mbit=building))
                changes.append(Change(at_step=2 * index + 2, node=node, link_mbit=rate))
    return sorted(changes, key=lambda change: change.at_step)


def first_error_line(result: RunResult) -> str:
    """The error of the first rank that failed, in one line; for a run out of time, that."""
    assert result.error is not None
    headline = result.error.splitlines()[0]
    blamed = _BLAMED.search(headline)
    if blamed is None:
        return headline[:_LONGEST]
    # The whole log: a dump of the stacks of an aborted rank is longer than the end that the result quotes.
    log = result.ranks[int(blamed.group(1))].log
    found = _ERROR_LINE.findall(log.read_text(errors="replace")) if log.is_file() else []
    line = found[-1].strip() if found else headline.partition(" End of its output")[0]
    return " ".join(line.split())[:_LONGEST]
