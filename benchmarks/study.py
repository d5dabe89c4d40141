"""A study: sides that take turns on workloads and clusters, each at its best setting, all of them beside one base.

1. Announce the expected duration.
2. Probe every side's best micro-batch and precision (:mod:`benchmarks.tuning`), once for clusters of the same conditions.
3. Rounds: every side once a round, and the base a second time under the control's name. Sides of a round share processes
   where they can (:mod:`benchmarks.peers.sides`).
4. Bounds (:mod:`benchmarks.study_bounds`), JSON, plots, and the tables of a full run in the study's document.

Whatever was measured is on disk at once; the same command goes on where it was stopped.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.choices import Choices, Trial, conditions_of
from benchmarks.cluster import Cluster, ClusterSpec
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.extension import compile_extension
from benchmarks.interleave import Comparison, compare, control_name
from benchmarks.launches import Launched, run_jobs
from benchmarks.options import Options
from benchmarks.output import console
from benchmarks.peers.sides import REPLICATED, Side, get_side
from benchmarks.peers.trainer import Job
from benchmarks.readings import Readings
from benchmarks.results import Choice, Failure, Results
from benchmarks.study_bounds import bounds_of
from benchmarks.study_metrics import metrics_of, units_of
from benchmarks.study_plot import plot_sides
from benchmarks.study_tables import markdown_tables, print_table, write_between_markers
from benchmarks.tuning import (
    ALONE_CONDITIONS,
    LAUNCH_SIZE,
    chosen_setting,
    plan_alone,
    plan_micro_batches,
    plan_precisions,
    tune,
)
from benchmarks.workloads import Workload, get_workload
from recparallel.errors import ConfigError

_RESULTS = Path("docs") / "results"
_QUICK_BATCH, _QUICK_STEPS = 16, 2
# Short steps, of pipelines above all, vary more: a quick run takes more of them.
_QUICK_SHORT_SECONDS, _QUICK_SHORT_STEPS = 3.0, 5
# Measured at half a core a rank: to import the stack, to build a side, to train a step.
_LAUNCH_SECONDS, _BUILD_SECONDS, _STEP_SECONDS = 12.0, 2.0, 5.0
# A warm-up step against a measured one: links are not limited then.
_WARMUP_SHARE = 0.6
_ALONE_SECONDS = 3.0


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: of the benchmark.
        base: the side that others are divided by, and the control.
        sides: those of a workload.
        workloads, clusters: names of those measured unless the command line says otherwise; a quick run takes the first.
        document: holds the tables of the last full run, between markers.
        environment: variables of all ranks, the same on every side.
        extras: units of what sides report of themselves, by name (:class:`benchmarks.peers.trainer.StepResult`).
        settles: steps before each measurement, probes included, beside those that every benchmark makes; none in a quick run.
        bound: further bounds, from the results of a pair.
        conclude: further tables and plots, from all results, the path of the JSON, and the document if it is to be written.
    """

    name: str
    base: str
    sides: Callable[[Workload], tuple[Side, ...]]
    workloads: tuple[str, ...]
    clusters: tuple[str, ...]
    document: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, str] = field(default_factory=dict)
    settles: int = 0
    bound: Callable[[Results, Workload, ClusterSpec], None] = lambda results, workload, spec: None
    conclude: Callable[[Results, Path, Path | None], None] = lambda results, path, document: None


@dataclass(frozen=True)
class Pair:
    """A workload on a cluster, and the sides that run there."""

    workload: Workload
    spec: ClusterSpec
    sides: tuple[Side, ...]

    @property
    def names(self) -> tuple[str, str]:
        """Workload and cluster."""
        return self.workload.name, self.spec.name


@dataclass
class Run:
    """One run of a study: what was asked for, and where everything is kept."""

    study: Study
    options: Options
    results: Results
    readings: Readings
    choices: Choices

    @property
    def rounds(self) -> int:
        """Of all sides."""
        return self.options.rounds or (1 if self.options.quick else 3)

    @contextmanager
    def enter(self, spec: ClusterSpec) -> Iterator[Cluster]:
        """A cluster, emulated unless the options say otherwise; its ranks find the study's variables."""
        former = {name: os.environ.get(name) for name in self.study.environment}
        os.environ.update(self.study.environment)
        try:
            with Cluster(spec, local=self.options.local) as cluster:
                yield cluster
        finally:
            for name, value in former.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def run_study(study: Study, options: Options) -> int:
    """Measure every side on the chosen workloads and clusters (``--quick``: the first of each, with a quarter of the global
    batch, one round, settings from probes that exist).

    Returns:
        0, also where a side did not run: that is a result.

    Raises:
        ConfigError: a chosen workload has no data here.
        UnknownNameError: there is no such side.
    """
    started = time.monotonic()
    environment = capture_environment(options.command, emulated=not options.local)
    run_ = Run(
        study,
        options,
        Results(benchmark=study.name, environment=environment),
        # A quick run never goes on from another one: it is the noise between two of them that tells something.
        Readings.beside(options.json, environment, fresh=options.fresh or options.quick),
        Choices.for_quick_run(_RESULTS / f"{study.name}.json", environment)
        if options.quick
        else Choices.beside(options.json, environment, fresh=options.fresh),
    )
    pairs = _pairs(study, options)
    console.print(announcement(pairs, run_))
    compile_extension()
    for pair in pairs:
        _measure(pair, run_)
    _publish(run_)
    console.print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def announcement(pairs: Sequence[Pair], run: Run) -> str:
    """How long it will take, from the probes where they exist, else from experience."""
    probes, rounds = expected_seconds(pairs, run)
    total = probes + rounds
    quick = (
        f" (quick: global batch {_QUICK_BATCH}, {_QUICK_STEPS} measured steps a side, {_QUICK_SHORT_STEPS} of short ones)"
        if run.options.quick
        else ""
    )
    where = ", ".join(f"{workload} on {cluster}" for workload, cluster in (pair.names for pair in pairs))
    return (
        f"{run.study.name}: {where}; {run.rounds} rounds of all sides{quick}\n"
        f"expected duration {total / 60:.0f} minutes, {probes / 60:.0f} of them for probes that are missing"
    )


def expected_seconds(pairs: Sequence[Pair], run: Run) -> tuple[float, float]:
    """Seconds for missing probes, and for missing rounds."""
    probes = rounds = 0.0
    probed: set[tuple[str, str]] = set()
    for pair in pairs:
        key = pair.workload.name, conditions_of(pair.spec)
        if key not in probed and not run.options.quick:
            probes += _expected_probe_seconds(pair, run.choices, run.study.settles)
            probed.add(key)
        for number in range(run.rounds):
            rounds += _expected_round_seconds(pair, number, run)
    return probes, rounds


def _expected_probe_seconds(pair: Pair, choices: Choices, settles: int) -> float:
    alone = len(plan_alone(pair.sides, pair.workload, choices))
    given = pair.sides, pair.workload, pair.spec, choices
    steps = [len(plan_precisions(*given)), len(plan_micro_batches(*given))]
    if steps[0]:  # then the third step is not known yet: two more for each side with a micro-batch of its own
        steps[1] = 2 * sum(side.kind != "replicated" for side in pair.sides)
    launches = (alone > 0) + sum(math.ceil(count / LAUNCH_SIZE) + 1 for count in steps if count)
    each = _BUILD_SECONDS + (1 + settles * _WARMUP_SHARE) * _STEP_SECONDS
    return alone * _ALONE_SECONDS + sum(steps) * each + launches * _LAUNCH_SECONDS


def _expected_round_seconds(pair: Pair, number: int, run: Run) -> float:
    jobs = _jobs_of_round(pair, number, run)
    launches = {_launch_of(job) for job in jobs}
    share = pair.workload.global_batch / get_workload(pair.workload.name).global_batch
    seconds = len(launches) * _LAUNCH_SECONDS
    for job in jobs:
        best = run.choices.best(pair.workload.name, conditions_of(pair.spec), job.side)
        # Of a step with fewer sequences the exchange remains whole.
        step = (best.seconds if best and best.seconds else _STEP_SECONDS) * (1 + share) / 2
        seconds += _BUILD_SECONDS + (job.warmup * _WARMUP_SHARE + job.steps) * step
    return seconds


def _pairs(study: Study, options: Options) -> list[Pair]:
    names = options.workloads or (study.workloads[:1] if options.quick else study.workloads)
    workloads = [get_workload(name) for name in names]
    for workload in workloads:
        if reason := workload.missing():
            raise ConfigError(f"workload {workload.name}: {reason}")
    if options.quick:
        workloads = [Workload(**{**vars(workload), "global_batch": _QUICK_BATCH}) for workload in workloads]
    default = study.clusters[:1] if options.quick else study.clusters
    specs = options.clusters or tuple(CLUSTERS[name] for name in default)
    return [Pair(workload, spec, _sides(workload, study, options)) for workload in workloads for spec in specs]


def _sides(workload: Workload, study: Study, options: Options) -> tuple[Side, ...]:
    if not options.sides:
        return study.sides(workload)
    return tuple(get_side(name) for name in dict.fromkeys((study.base, *options.sides)))


def _measure(pair: Pair, run: Run) -> None:
    workload, cluster = pair.names
    if not run.options.quick:
        tune(pair.sides, pair.workload, pair.spec, run.choices, enter=run.enter, settles=run.study.settles)
    rounds = range(run.rounds)
    if any(_jobs_of_round(pair, number, run) for number in rounds):
        with run.enter(pair.spec) as entered:
            for number in rounds:
                _measure_round(pair, number, run, entered)
    _record(pair, run)
    if run.options.json:
        run.results.save(run.options.json)
    print_table(run.results, workload, cluster, base=run.study.base)


def _measure_round(pair: Pair, number: int, run: Run, cluster: Cluster) -> None:
    jobs = _jobs_of_round(pair, number, run)
    for launch in dict.fromkeys(_launch_of(job) for job in jobs):
        own = [job for job in jobs if _launch_of(job) == launch]
        started = time.monotonic()
        launched = run_jobs(cluster, own)
        for job in own:
            if job.label in launched.done:
                _keep(pair, job, launched, number, run)
            else:
                _note_failure(pair, job, launched.failed.get(job.label, "no reading came back"), run)
        console.print(f"  round {number + 1} of {run.rounds}: {time.monotonic() - started:.0f} s", markup=False)


def _keep(pair: Pair, job: Job, launched: Launched, number: int, run: Run) -> None:
    """A round gives one reading, the mean of its steps. The single round of a quick run gives one a step: without a
    second reading the control could not show any noise."""
    done, batch = launched.done[job.label], pair.workload.global_batch
    by_step = range(job.steps) if run.options.quick else [None]
    for index, step in enumerate(by_step):
        metrics = metrics_of(done, pair.spec, batch, step=step)
        metrics["background_cores"] = launched.background_cores
        run.readings.add(*pair.names, job.label, number * job.steps + index if run.options.quick else number, metrics)
    seconds = metrics_of(done, pair.spec, batch)["seconds_per_step"]
    console.print(
        f"  round {number + 1} of {run.rounds}, {job.label} ({job.setting}): {seconds:.2f} s a step", markup=False
    )


def _note_failure(pair: Pair, job: Job, reason: str, run: Run) -> None:
    """Kept with the probes, under the cluster's name: a side that crashed is not tried again by a run that goes on."""
    console.print(f"  {job.label}: did not run: {reason}", markup=False)
    run.choices.add(
        Trial(
            workload=pair.workload.name,
            conditions=_crashes(pair),
            side=job.side,
            micro_batch=job.setting.micro_batch,
            precision=job.setting.precision,
            failure=reason,
        )
    )


def _crashes(pair: Pair) -> str:
    return f"crashed on {pair.spec.name} with {pair.workload.global_batch} sequences"


def _failure(pair: Pair, side: str, choices: Choices) -> str | None:
    workload = pair.workload.name
    return choices.failure(workload, conditions_of(pair.spec), side) or choices.failure(workload, _crashes(pair), side)


def _jobs_of_round(pair: Pair, number: int, run: Run) -> list[Job]:
    """What is missing of a round. Within a launch the control follows the replicas and pipelines, far from its base."""
    jobs = [_job(side, pair, run) for side in pair.sides if _failure(pair, side.name, run.choices) is None]
    main = [job for job in jobs if _launch_of(job) == "main"]
    base = next((job for job in jobs if job.label == run.study.base), None)
    if base is not None:
        control = Job(**{**vars(base), "label": control_name(run.study.base)})
        jobs.insert(sum("autotp" not in job.side for job in main), control)
    return [job for job in jobs if not run.readings.has(*pair.names, job.label, number)]


def _job(side: Side, pair: Pair, run: Run) -> Job:
    setting = chosen_setting(side, pair.workload, pair.spec, run.choices)
    allowed = side.micro_batches(pair.workload, pair.spec.world_size)
    if setting.micro_batch not in allowed:  # a probe with a larger global batch chose it
        setting = type(setting)(allowed[0], setting.precision)
    best = run.choices.best(pair.workload.name, conditions_of(pair.spec), side.name)
    # Short steps are repeated, so that no measurement is over in a moment.
    if run.options.quick:
        steps = _QUICK_SHORT_STEPS if _quick_seconds(best, pair.workload) < _QUICK_SHORT_SECONDS else _QUICK_STEPS
    else:
        steps = 1 if best is None or not best.seconds else max(1, min(5, round(6 / best.seconds)))
    warmup = 1 + side.settles + (0 if run.options.quick else run.study.settles)
    return Job(side.name, side.name, pair.workload.name, setting, warmup, steps, pair.workload.global_batch)


def _quick_seconds(best: Trial | None, workload: Workload) -> float:
    """Of a quick step: a shorter pipeline is shorter in proportion, of an exchange all remains."""
    if best is None or not best.seconds:
        return _STEP_SECONDS
    share = workload.global_batch / get_workload(workload.name).global_batch
    whole = get_side(best.side).kind == REPLICATED
    return best.seconds * ((1 + share) / 2 if whole else share)


def _launch_of(job: Job) -> str:
    return get_side(job.side).launch


def _record(pair: Pair, run: Run) -> None:
    workload, cluster = pair.names
    comparison: Comparison = compare(
        [*(side.name for side in pair.sides), control_name(run.study.base)],
        base=run.study.base,
        workload=workload,
        cluster=cluster,
        units=units_of(pair.spec, run.study.extras),
        readings=run.readings,
    )
    results = run.results
    results.rows += comparison.rows
    results.ratios += comparison.ratios
    for side in pair.sides:
        reason = _failure(pair, side.name, run.choices)
        measured = any(row.side == side.name for row in comparison.rows)
        if reason is not None:
            rounds = max((row.runs for row in comparison.rows if row.side == side.name), default=0)
            if rounds:
                reason = f"in {rounds} rounds it ran, then: {reason}"
            results.failures.append(Failure(workload=workload, cluster=cluster, side=side.name, reason=reason))
        if measured:
            setting = str(_job(side, pair, run).setting)
            results.choices.append(Choice(workload=workload, cluster=cluster, side=side.name, setting=setting))
    alone = run.choices.trials(workload, ALONE_CONDITIONS, "alone") + run.choices.trials(
        workload, ALONE_CONDITIONS, "alone sparse"
    )
    settings = {side.name: _job(side, pair, run).setting for side in pair.sides}
    results.bounds += bounds_of(comparison.rows, pair.sides, settings, pair.spec, pair.workload, alone)
    run.study.bound(results, pair.workload, pair.spec)


def _publish(run: Run) -> None:
    """JSON, a plot for each workload and cluster, and the tables of a full run in the document."""
    path = run.options.json
    if path is None:
        return
    base = run.study.base
    run.results.save(path)
    for workload, cluster in dict.fromkeys((row.workload, row.cluster) for row in run.results.rows):
        plot_sides(run.results, workload, cluster, path.with_name(f"{path.stem}-{workload}-{cluster}.png"), base=base)
    document = run.study.document
    documented = document.is_file() and path.resolve().parent == document.parent.resolve() / "results"
    publish = documented and not run.options.quick and not run.options.sides
    run.study.conclude(run.results, path, document if publish else None)
    if publish:
        write_between_markers(document, markdown_tables(run.results, base=base), name=run.study.name)
