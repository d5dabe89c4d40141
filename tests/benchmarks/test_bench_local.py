"""Plain local processes: environment, logs, reports, failures, time. None of this needs rights."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster import Change, Cluster, ClusterSpec, remove_leftovers
from benchmarks.cluster.cleanup import remains
from benchmarks.errors import RunError

PAIR = ClusterSpec(name="pair", nodes=2, cpu=0.5, link_mbit=100)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(PAIR, local=True) as made:
        yield made


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_run_hands_back_what_each_rank_reports_and_is_marked_as_not_emulated(
    cluster: Cluster, tmp_path: Path
) -> None:
    lines: list[tuple[int, str]] = []
    code = (
        "import os; from benchmarks import rank\n"
        "x = rank.read(); print('hello', os.environ['RANK'])\n"
        "rank.write_report({'rank': int(os.environ['RANK']), 'threads': os.environ['OMP_NUM_THREADS'], 'sent': x.sent_bytes})"
    )
    result = cluster.run(
        _python(code), logs=tmp_path, show=lambda rank, line: lines.append((rank, line)), timeout=30
    ).check()
    assert result.emulated is False
    assert result.reports == [{"rank": rank, "threads": "1", "sent": None} for rank in (0, 1)]
    assert sorted(lines) == [(0, "hello 0"), (1, "hello 1")]
    assert (tmp_path / "rank1.log").read_text() == "hello 1\n"
    assert all(rank.exit_code == 0 and rank.cpu_seconds > 0 and rank.sent_bytes is None for rank in result.ranks)


def test_a_command_may_differ_by_rank(cluster: Cluster) -> None:
    result = cluster.run(
        lambda place: ["sh", "-c", f"test $RANK = {place.rank} -a $LOCAL_RANK = {place.local_rank}"], timeout=30
    )
    assert result.ok


def test_a_rank_that_fails_stops_the_others_and_comes_first(cluster: Cluster) -> None:
    code = (
        "import os, time\n"
        "time.sleep(0.2)\n"
        "if os.environ['RANK'] == '1': raise ValueError('the real reason')\n"
        "time.sleep(0.2); raise RuntimeError('Connection closed by peer')"
    )
    started = time.monotonic()
    result = cluster.run(_python(code), timeout=60)
    assert time.monotonic() - started < 20
    assert result.error is not None
    assert result.error.startswith("rank 1 failed")
    assert result.error.index("the real reason") < result.error.index("Connection closed")
    with pytest.raises(RunError, match="the real reason"):
        result.check()


def test_a_rank_that_ignores_sigterm_is_killed(cluster: Cluster) -> None:
    command = "if [ $RANK = 0 ]; then exit 3; fi; trap '' TERM; while :; do sleep 0.1; done"
    started = time.monotonic()
    result = cluster.run(["sh", "-c", command], timeout=60)
    assert time.monotonic() - started < 20
    assert [rank.exit_code for rank in result.ranks] == [3, -9]
    assert [rank.stopped for rank in result.ranks] == [False, True]


def test_time_runs_out_with_the_stacks_of_all_ranks_in_the_logs(cluster: Cluster, tmp_path: Path) -> None:
    code = "import time\ndef waits_here(): time.sleep(60)\nwaits_here()"
    result = cluster.run(_python(code), timeout=1.5, logs=tmp_path)
    assert result.error is not None
    assert "no end within 1.5 s" in result.error
    assert "[0, 1]" in result.error
    assert "waits_here" in (tmp_path / "rank1.log").read_text()


def test_a_planned_kill_is_made_at_its_step_and_ends_the_others(cluster: Cluster) -> None:
    code = "import time; from benchmarks import rank\nfor step in range(600): rank.report_step(step); time.sleep(0.05)"
    result = cluster.run(_python(code), changes=[Change(at_step=4, kill_rank=1)], timeout=60)
    assert result.changes[0].what == "kill rank 1"
    assert result.changes[0].seen_step >= 4
    assert result.ranks[1].exit_code == -9
    assert result.ranks[0].stopped
    assert result.error is not None
    assert "killed at step 4, as the description asks" in result.error


def test_the_others_go_on_where_they_are_allowed_to(cluster: Cluster) -> None:
    result = cluster.run(["sh", "-c", "test $RANK = 0 || exit 1; sleep 1.6"], stop_on_failure=False, timeout=60)
    assert [rank.exit_code for rank in result.ranks] == [0, 1]
    assert not result.ranks[0].stopped


def test_limits_are_reported_as_not_made(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    code = "import time; from benchmarks import rank; rank.report_step(1); time.sleep(0.5)"
    result = cluster.run(_python(code), changes=[Change(at_step=1, node=0, cpu=0.1)], timeout=30).check()
    assert [change.applied for change in result.changes] == [False]
    assert "no limits" in caplog.text


def test_what_a_rank_leaves_running_is_ended_with_the_run(cluster: Cluster) -> None:
    cluster.run(["sh", "-c", "setsid sleep 300 & exit 0"], timeout=30).check()
    assert not remains(cluster.name)


def test_a_command_that_cannot_start_leaves_nothing(cluster: Cluster) -> None:
    with pytest.raises(FileNotFoundError):
        cluster.run(lambda place: ["sleep", "300"] if place.rank == 0 else ["/no/such/program"], timeout=30)
    assert not remains(cluster.name)


def test_a_live_run_is_no_leftover(cluster: Cluster) -> None:
    assert cluster.name not in remove_leftovers()
    assert os.getpid() == int(cluster.name.split("-")[1])
