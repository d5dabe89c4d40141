"""Find each side's best micro-batch and precision by short probes, straight after building or behind a few steps more: the median
of three steps of a pipeline, whose single steps stray by a tenth, and one step of others.

1. One process alone, without an exchange, at every micro-batch and precision: replicas compute what it computes, so its
   best micro-batch is theirs. Its costs are the basis of the compute bounds.
2. Every side in both precisions, at that micro-batch or the middle one of its own.
3. Pipelines and tensor parallelism at their other micro-batches, in the better precision.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

from benchmarks.choices import Choices, Trial, conditions_of
from benchmarks.cluster import Cluster, ClusterSpec
from benchmarks.launches import RankReadings, run_jobs
from benchmarks.output import console
from benchmarks.peers.sides import ALONE, PIPELINE, REPLICATED, Side
from benchmarks.peers.trainer import Job, Setting
from benchmarks.workloads import Workload

PRECISIONS = ("fp32", "bf16")
ALONE_SPEC = ClusterSpec(name="alone", nodes=1, cpu=1.0)
ALONE_BATCH = 16
"""Sequences of a step of the process alone."""

LAUNCH_SIZE = 20
"""Probes of one launch at most: trials come back at its end, and a run that is stopped should not lose many."""

_PIPELINE_STEPS = 3

ALONE_CONDITIONS = conditions_of(ALONE_SPEC)
_ALONE_MICRO_BATCHES = (16, 8, 4)

Enter = Callable[[ClusterSpec], AbstractContextManager[Cluster]]
Planned = tuple[Side, Setting]


def plan_alone(sides: Sequence[Side], workload: Workload, choices: Choices) -> list[Planned]:
    """Step 1, what is missing of it."""
    kinds = sorted({bool(side.options.get("sparse")) for side in sides})
    wanted = [(ALONE[kind], Setting(m, p)) for kind in kinds for p in PRECISIONS for m in _ALONE_MICRO_BATCHES]
    return [(s, at) for s, at in wanted if not choices.has(workload.name, ALONE_CONDITIONS, s.name, at)]


def plan_precisions(sides: Sequence[Side], workload: Workload, spec: ClusterSpec, choices: Choices) -> list[Planned]:
    """Step 2, what is missing of it; needs step 1."""
    conditions = conditions_of(spec)
    wanted = [(side, first_setting(side, p, workload, spec, choices)) for side in sides for p in side.precisions]
    return [(s, at) for s, at in wanted if not choices.has(workload.name, conditions, s.name, at)]


def plan_micro_batches(sides: Sequence[Side], workload: Workload, spec: ClusterSpec, choices: Choices) -> list[Planned]:
    """Step 3, what is missing of it; needs step 2."""
    conditions = conditions_of(spec)
    wanted = []
    for side in sides:
        tried = [first_setting(side, p, workload, spec, choices) for p in side.precisions]
        ran = [t for t in choices.trials(workload.name, conditions, side.name) if t.seconds and t.setting in tried]
        if side.kind != REPLICATED and ran:
            precision = min(ran, key=lambda trial: trial.seconds or 0.0).precision
            wanted += [(side, Setting(m, precision)) for m in side.micro_batches(workload, spec.world_size)]
    return [(s, at) for s, at in wanted if not choices.has(workload.name, conditions, s.name, at)]


def first_setting(side: Side, precision: str, workload: Workload, spec: ClusterSpec, choices: Choices) -> Setting:
    """Where a side's probes begin: the process alone's best micro-batch for replicas, else the middle one."""
    own = side.micro_batches(workload, spec.world_size)
    if side.kind == REPLICATED:
        alone = ALONE[bool(side.options.get("sparse"))]
        best = choices.best(workload.name, ALONE_CONDITIONS, alone.name, precision=precision)
        return Setting(best.micro_batch if best and best.micro_batch in own else own[0], precision)
    return Setting(own[len(own) // 2], precision)


def chosen_setting(side: Side, workload: Workload, spec: ClusterSpec, choices: Choices) -> Setting:
    """The best setting tried; without any, the side's last precision at the first one."""
    best = choices.best(workload.name, conditions_of(spec), side.name)
    return best.setting if best else first_setting(side, side.precisions[-1], workload, spec, choices)


def tune(
    sides: Sequence[Side],
    workload: Workload,
    spec: ClusterSpec,
    choices: Choices,
    *,
    enter: Enter,
    settles: int = 0,
) -> None:
    """Make all probes that are missing.

    Args:
        sides: those measured on ``workload``.
        spec: the cluster; one with the same conditions has the same probes.
        choices: where trials are kept.
        enter: opens a cluster.
        settles: steps before that of a probe.
    """
    alone = plan_alone(sides, workload, choices)
    if alone:
        with enter(ALONE_SPEC) as cluster:
            _probe(alone, workload, cluster, choices, ALONE_CONDITIONS, global_batch=ALONE_BATCH)
    for plan in (plan_precisions, plan_micro_batches):
        planned = plan(sides, workload, spec, choices)
        if planned:
            with enter(spec) as cluster:
                for launch in dict.fromkeys(side.launch for side, _ in planned):
                    own = [(side, setting) for side, setting in planned if side.launch == launch]
                    for first in range(0, len(own), LAUNCH_SIZE):
                        part = own[first : first + LAUNCH_SIZE]
                        _probe(part, workload, cluster, choices, conditions_of(spec), settles=settles)


def _probe(
    planned: Sequence[Planned],
    workload: Workload,
    cluster: Cluster,
    choices: Choices,
    conditions: str,
    *,
    global_batch: int | None = None,
    settles: int = 0,
) -> None:
    warmup = 1 if global_batch else settles  # an update alone is short, and its first one allocates
    jobs = {
        f"{side.name}, {setting}": Job(
            f"{side.name}, {setting}",
            side.name,
            workload.name,
            setting,
            warmup + side.settles,
            _PIPELINE_STEPS if side.kind == PIPELINE else 1,
            global_batch,
        )
        for side, setting in planned
    }
    launched = run_jobs(cluster, list(jobs.values()))
    for label, job in jobs.items():
        readings = launched.done.get(label)
        trial = _trial(job, conditions, readings, launched.failed.get(label))
        choices.add(trial)
        said = f"{trial.seconds:.2f} s a step" if trial.seconds is not None else f"did not run: {trial.failure}"
        console.print(f"  probe {workload.name}, {label}: {said}", markup=False)


def _trial(job: Job, conditions: str, readings: RankReadings | None, failure: str | None) -> Trial:
    known: dict[str, Any] = {
        "workload": job.workload,
        "conditions": conditions,
        "side": job.side,
        "micro_batch": job.setting.micro_batch,
        "precision": job.setting.precision,
    }
    if readings is None:
        return Trial(**known, failure=failure or "no reading came back")
    updates = _sum(reading["optimizer_cpu_seconds"] for reading in readings) / job.steps
    cpu_seconds = _sum([w["cpu_seconds"] for w in reading["windows"]] for reading in readings) / job.steps
    return Trial(
        **known,
        seconds=median(max(windows) for windows in zip(*([w["seconds"] for w in r["windows"]] for r in readings))),
        total_seconds=readings[0]["total_seconds"],
        cpu_seconds=cpu_seconds - updates,
        update_cpu_seconds=updates or None,
    )


def _sum(lists: Iterable[Sequence[float]]) -> float:
    return sum(sum(values) for values in lists)
