"""The `stock` benchmark: sides on real ranks, probes that are cached, crashes that are recorded, results that validate."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import stock, study, tuning
from benchmarks.choices import Choices, Trial, conditions_of
from benchmarks.cluster import Cluster, ClusterSpec
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import capture_environment
from benchmarks.errors import RunError
from benchmarks.interleave import control_name
from benchmarks.launches import Launched, first_error_line, run_jobs
from benchmarks.options import Options
from benchmarks.peers.sides import BASE, sides_for
from benchmarks.peers.trainer import Job, Setting
from benchmarks.results import Results
from benchmarks.study_metrics import RATE, metrics_of
from benchmarks.study_tables import markers, write_between_markers
from benchmarks.workloads import WORKLOADS
from recparallel.errors import ConfigError

PAIR = ClusterSpec(name="pair", nodes=2, cpu=0.5, link_mbit=100)
ENVIRONMENT = capture_environment("test", emulated=True)
PIPELINE_FAILURE = "RuntimeError: no pipeline today"


def _reading(seconds: float, steps: int = 1) -> dict[str, Any]:
    window = {"seconds": seconds, "cpu_seconds": 0.25 * seconds, "sent_bytes": 1_000_000, "received_bytes": 1_000_000}
    return {
        "windows": [{**window, "loopback_bytes": 0}] * steps,
        "warmup_seconds": [],
        "optimizer_cpu_seconds": [],
        "losses": [9.0] * steps,
        "peak_memory_bytes": 2**30,
        "total_seconds": 3 * seconds,
    }


class FakeLaunches:
    """Stands in for :func:`run_jobs`: bf16 is twice as fast, micro-batch 8 the best, one side crashes."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def __call__(self, cluster: Cluster, jobs: Sequence[Job]) -> Launched:
        launched = Launched()
        for job in jobs:
            self.jobs.append(job)
            if job.side == "ds pp uniform":
                launched.failed[job.label] = PIPELINE_FAILURE
                continue
            seconds = (2.0 if job.setting.precision == "bf16" else 4.0) + abs(job.setting.micro_batch - 8)
            seconds *= 0.5 if job.side == "ds zero1" else 1.0
            ranks = 1 if job.side.startswith("alone") else 4
            launched.done[job.label] = [_reading(seconds, job.steps) for _ in range(ranks)]
        return launched


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeLaunches:
    @contextmanager
    def enter(run: study.Run, spec: ClusterSpec) -> Iterator[None]:
        yield None

    launches = FakeLaunches()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "run_jobs", launches)
    monkeypatch.setattr(tuning, "run_jobs", launches)
    monkeypatch.setattr(study.Run, "enter", enter)
    monkeypatch.setattr(study, "compile_extension", lambda: None)
    return launches


def _options(path: Path, **others: Any) -> Options:
    return Options(json=path, workloads=("head",), clusters=(CLUSTERS["flat"],), rounds=2, **others)


def test_results_have_every_side_the_control_bounds_and_the_crash(fake: FakeLaunches, tmp_path: Path) -> None:
    path = tmp_path / "docs" / "results" / "stock.json"
    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs" / "benchmarks.md"
    begin, end = markers("stock")
    document.write_text(f"# Benchmarks\n{begin}\nold\n{end}\nend\n")
    assert stock.run(_options(path)) == 0
    results = Results.load(path)
    names = {side.name for side in sides_for(WORKLOADS["head"])}
    assert {row.side for row in results.rows} == names - {"ds pp uniform"} | {control_name(BASE)}
    assert [(failure.side, failure.reason) for failure in results.failures] == [("ds pp uniform", PIPELINE_FAILURE)]
    rate = results.find(side="ds zero1", metric=RATE, workload="head", cluster="flat")
    assert rate is not None
    assert rate.runs == 2
    assert {choice.setting for choice in results.choices} == {"micro-batch 8, bf16"}
    ratio = next(r for r in results.ratios if r.side == "ds zero1" and r.metric == RATE)
    assert ratio.median == pytest.approx(2.0)
    # 4 ranks at half a core; the process alone takes 0.5 CPU seconds for 16 of 64 sequences.
    ideal = next(bound for bound in results.bounds if bound.side is None)
    assert ideal.value == pytest.approx(64 * 2 / (0.5 * 4))
    network = next(bound for bound in results.bounds if bound.name == "network" and bound.side == BASE)
    assert network.value == pytest.approx(64 / (1e6 / 25e6))
    assert path.with_name("stock-head-flat.png").read_bytes().startswith(b"\x89PNG")
    text = document.read_text()
    assert "old" not in text
    assert "- ds pp uniform did not run: RuntimeError: no pipeline today" in text
    assert text.endswith(f"{end}\nend\n")


def test_a_run_goes_on_where_it_stopped_and_probes_nothing_twice(fake: FakeLaunches, tmp_path: Path) -> None:
    path = tmp_path / "stock.json"
    stock.run(_options(path))
    first = len(fake.jobs)
    labels = [job.label for job in fake.jobs]
    assert len({label for label in labels if "micro-batch" in label}) == sum("micro-batch" in x for x in labels)
    stock.run(_options(path))
    assert len(fake.jobs) == first
    stock.run(Options(json=path, workloads=("head",), clusters=(CLUSTERS["two_tier"],), rounds=1))
    assert all("micro-batch" not in job.label for job in fake.jobs[first:])  # the conditions are those of `flat`
    assert len(fake.jobs) - first == len(sides_for(WORKLOADS["head"]))  # one crashes, the control comes in its place
    stock.run(_options(path, fresh=True))
    assert any("micro-batch" in job.label for job in fake.jobs[first + 1 :])


def test_quick_measures_every_side_once_without_probes(fake: FakeLaunches, tmp_path: Path) -> None:
    stock.run(Options(quick=True, json=tmp_path / "quick.json"))
    sides = [side.name for side in sides_for(WORKLOADS["head"])]
    assert sorted(job.label for job in fake.jobs) == sorted([*sides, control_name(BASE)])
    assert {(job.global_batch, job.steps) for job in fake.jobs} == {(16, 2)}
    rate = Results.load(tmp_path / "quick.json").find(side=BASE, metric=RATE, workload="head", cluster="flat")
    assert rate is not None
    assert rate.runs == 2


def test_the_duration_is_announced_and_fits_with_probes_known(
    fake: FakeLaunches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock.run(_options(tmp_path / "stock.json"))
    said = capsys.readouterr().out
    assert said.index("expected duration") < said.index("probe head")


def test_a_side_that_runs_at_no_setting_has_a_reason(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "probes.json", ENVIRONMENT)
    known = {"workload": "head", "conditions": conditions_of(PAIR), "side": "ddp", "micro_batch": 8}
    choices.add(Trial(**known, precision="fp32", failure="ValueError: no"))
    assert choices.failure("head", conditions_of(PAIR), "ddp") == "ValueError: no"
    choices.add(Trial(**known, precision="bf16", seconds=1.5))
    again = Choices(tmp_path / "probes.json", ENVIRONMENT)
    assert again.failure("head", conditions_of(PAIR), "ddp") is None
    best = again.best("head", conditions_of(PAIR), "ddp")
    assert best is not None
    assert best.setting == Setting(8, "bf16")
    other = ENVIRONMENT.model_copy(update={"cores": 77})
    assert not Choices(tmp_path / "probes.json", other).trials("head", conditions_of(PAIR), "ddp")


def test_clusters_share_probes_when_ranks_cores_and_rates_agree() -> None:
    assert conditions_of(CLUSTERS["flat"]) == conditions_of(CLUSTERS["two_tier"])
    assert conditions_of(CLUSTERS["flat"]) != conditions_of(CLUSTERS["fast"])


def test_ranks_of_a_node_share_its_bytes() -> None:
    metrics = metrics_of([_reading(2.0)] * 4, CLUSTERS["two_tier"], 64)
    assert metrics["sent_bytes_rank3"] == 500_000
    assert metrics["busy_share_rank0"] == pytest.approx(0.5)
    assert metrics[RATE] == 32.0


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("nothing")
    with pytest.raises(ConfigError, match="begin"):
        write_between_markers(tmp_path / "x.md", "table", name="stock")


@pytest.mark.slow
def test_two_sides_on_two_ranks_agree_in_loss_and_a_crash_between_is_recorded() -> None:
    def job(side: str, workload: str) -> Job:
        return Job(side, side, workload, Setting(2, "fp32"), warmup=0, steps=1, global_batch=4)

    jobs = [job("ds pp uniform", "deep"), job("ds autotp", "catalogue"), job("ddp", "deep")]
    with Cluster(PAIR, local=True) as cluster:
        launched = run_jobs(cluster, jobs)
    assert set(launched.done) == {"ds pp uniform", "ddp"}
    assert launched.failed["ds autotp"].startswith("recparallel.errors.ConfigError: AutoTP's vocabulary-parallel head")
    pipeline = [reading["losses"][0] for reading in launched.done["ds pp uniform"]]
    replicas = [reading["losses"][0] for reading in launched.done["ddp"]]
    assert pipeline[0] == pipeline[1]
    assert sum(replicas) / 2 == pytest.approx(pipeline[0], rel=1e-5)
    assert all(reading["peak_memory_bytes"] > 0 for reading in launched.done["ddp"])


def test_ranks_that_never_reach_a_side_are_an_error() -> None:
    with Cluster(PAIR, local=True) as cluster, pytest.raises(RunError):
        run_jobs(cluster, [Job("x", "ddp", "no such workload", "no setting")])  # type: ignore[arg-type]


def test_the_line_of_an_abort_is_found_above_a_long_dump() -> None:
    code = (
        "import os, sys; sys.stderr.write('  what():  [gloo] sizes do not match\\n' + 'frame\\n' * 300); "
        "sys.stderr.flush(); os.abort()"
    )
    with Cluster(PAIR, local=True) as cluster:
        result = cluster.run([sys.executable, "-c", code], timeout=30)
        assert first_error_line(result) == "what(): [gloo] sizes do not match"
