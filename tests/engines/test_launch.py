"""The frame around a training program: threads, the first error on top, one clean end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recparallel.engines import launch
from recparallel.engines.launch import clear_reports, running, set_threads
from recparallel.errors import ConfigError

# --- threads


@pytest.fixture
def machine(monkeypatch):
    """Torch's threads, put back afterwards, on a machine with as many cores as one says, of which this process may
    use some."""
    before = torch.get_num_threads()
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def make(cores, *, usable=None):
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable or cores)))

    make(4)
    yield make
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 4),
        ({"LOCAL_WORLD_SIZE": "2"}, 2),
        ({"LOCAL_SIZE": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, 1),
        ({"LOCAL_WORLD_SIZE": "3"}, 1),
        ({"LOCAL_WORLD_SIZE": "8"}, 1),  # more ranks than cores: still one thread
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, 3),
    ],
)
def test_threads_are_an_equal_share_of_the_cores_unless_the_environment_says_more(
    machine, monkeypatch, environment, expected
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert set_threads() == expected
    assert torch.get_num_threads() == expected


def test_cores_that_the_launcher_bound_to_a_rank_are_not_shared_again(machine, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    machine(8, usable=4)
    assert set_threads() == 4


def test_threads_can_be_asked_for(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert set_threads(3) == 3
    assert torch.get_num_threads() == 3


# --- the frame, in this process


class Exit(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def fail(monkeypatch, tmp_path, capsys):
    """Raise an error inside the frame, as a rank; returns the exit code and what was written to stderr."""

    def leave(code):
        raise Exit(code)

    def fail_as(rank, error):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(Exit) as exit_, running(tmp_path):
            raise error
        return exit_.value.args[0], capsys.readouterr().err

    monkeypatch.setattr(os, "_exit", leave)
    return fail_as


@pytest.fixture
def report(tmp_path):
    """Write a rank's report, as if it had failed some time ago; returns the file."""

    def write(rank, *, seconds_ago=5.0):
        (tmp_path / "errors").mkdir(exist_ok=True)
        path = tmp_path / "errors" / f"rank_{rank}.txt"
        path.write_text(f"{time.time() - seconds_ago:.6f}\nan earlier error")
        return path

    return write


def test_an_error_exits_1_with_the_rank_on_top_and_a_report(fail, tmp_path):
    before = time.time()
    assert fail(2, ConfigError("stages is 3")) == (1, "[rank 2] first error: ConfigError: stages is 3\n")
    at, _, text = (tmp_path / "errors" / "rank_2.txt").read_text().partition("\n")
    assert text == "stages is 3"  # ours say all there is to say: no traceback
    assert before - 1e-6 <= float(at) <= time.time() + 1e-6  # stored with six decimals


def test_an_error_that_nobody_foresaw_comes_with_its_traceback(fail, tmp_path):
    code, err = fail(0, KeyError("absent"))
    assert code == 1
    assert err.startswith("[rank 0] first error: KeyError: Traceback (most recent call last):\n")
    assert err.endswith("KeyError: 'absent'\n\n")
    assert "Traceback" in (tmp_path / "errors" / "rank_0.txt").read_text()


def test_an_error_after_another_ranks_says_who_failed_first(fail, report, tmp_path):
    first = report(1)
    assert fail(3, ConfigError("later")) == (1, f"[rank 3] stops: rank 1 failed first, see {first}\n")
    assert (tmp_path / "errors" / "rank_3.txt").read_text().endswith("\nlater")


def test_of_several_the_earliest_is_named(fail, report):
    report(1, seconds_ago=3)
    report(2, seconds_ago=8)
    report(4, seconds_ago=5)
    assert "rank 2 failed first" in fail(0, ConfigError("later"))[1]


def test_an_own_report_of_before_does_not_count(fail, report):
    report(0)
    assert fail(0, ConfigError("x"))[1] == "[rank 0] first error: ConfigError: x\n"


def test_the_two_ranks_of_a_failed_job_name_the_same_first_one(fail, tmp_path):
    cause = fail(0, ConfigError("the cause"))
    effect = fail(1, RuntimeError("Connection reset by peer"))
    assert cause == (1, "[rank 0] first error: ConfigError: the cause\n")
    assert effect == (1, f"[rank 1] stops: rank 0 failed first, see {tmp_path}/errors/rank_0.txt\n")


@pytest.mark.parametrize("words", ["Connection closed by peer", "Connection reset by peer"])
def test_a_lost_connection_without_a_culprit_is_no_error_of_its_own(fail, words):
    code, err = fail(1, RuntimeError(f"[gloo] {words} [127.0.0.1]"))
    assert code == 1
    assert err.startswith("[rank 1] lost a peer: another rank died without an error of its own (killed?)\n")
    assert f"RuntimeError: [gloo] {words}" in err
    assert "first error" not in err


@pytest.mark.parametrize("fails", [True, False])
def test_the_end_removes_this_ranks_shared_memory_and_no_other(fail, monkeypatch, tmp_path, fails):
    monkeypatch.setenv("MASTER_ADDR", "test-of-launch")
    monkeypatch.setenv("MASTER_PORT", str(os.getpid()))
    own, other = (
        Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_test-of-launch_{os.getpid()}_{rank}")
        for rank in (1, 2)
    )
    try:
        own.touch()
        other.touch()
        if fails:
            fail(1, ConfigError("x"))
        else:
            monkeypatch.setenv("RANK", "1")
            with running(tmp_path):
                pass
        assert (own.exists(), other.exists()) == (False, True)
    finally:
        own.unlink(missing_ok=True)
        other.unlink(missing_ok=True)


def test_an_interrupt_passes_through_without_a_report(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("left the process"))
    with pytest.raises(KeyboardInterrupt), running(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("initialized", [True, False])
def test_success_ends_with_a_barrier_and_without_a_group(monkeypatch, tmp_path, initialized):
    calls = []
    monkeypatch.setattr(launch.dist, "is_initialized", lambda: initialized)
    monkeypatch.setattr(launch.dist, "barrier", lambda: calls.append("barrier"))
    monkeypatch.setattr(launch.dist, "destroy_process_group", lambda: calls.append("destroy"))
    with running(tmp_path):
        calls.append("work")
    assert calls == (["work", "barrier", "destroy"] if initialized else ["work"])
    assert list(tmp_path.iterdir()) == []


def test_reports_of_an_earlier_run_are_cleared_and_nothing_else(report, tmp_path):
    report(0)
    report(11)
    kept = tmp_path / "errors" / "notes.txt"
    kept.write_text("mine")
    clear_reports(tmp_path)
    assert list((tmp_path / "errors").iterdir()) == [kept]
    clear_reports(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


# --- the frame, as a program

PROGRAM = """
import atexit, sys, time
from pathlib import Path
import torch.distributed as dist
from recparallel.engines.launch import running
from recparallel.errors import ConfigError

output, rank, world_size, body = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
atexit.register(lambda: print("destructor"))
with running(output):
    dist.init_process_group("gloo", init_method=f"file://{output}/store", rank=rank, world_size=world_size)
    exec(body)
print("after", dist.is_initialized())
"""


def start(output_dir, rank, world_size, body):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(output_dir), str(rank), str(world_size), body],
        env={**environment, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_the_ranks_of_a_job_wait_for_each_other_and_end_clean(tmp_path):
    marker = tmp_path / "late"
    late = start(tmp_path, 0, 2, f"time.sleep(0.5); Path({str(marker)!r}).touch()")
    early = start(tmp_path, 1, 2, f"atexit.register(lambda: print(Path({str(marker)!r}).exists()))")
    assert finish(late)[:2] == (0, "after False\ndestructor\n")
    # What runs at the end of the early rank, runs after the late one's work.
    assert finish(early)[:2] == (0, "after False\nTrue\ndestructor\n")
    assert not (tmp_path / "errors").exists()


def test_a_failing_rank_leaves_at_once_and_the_other_says_why(tmp_path):
    failing = start(tmp_path, 0, 2, "print('step 1'); raise ConfigError('boom')")
    waiting = start(tmp_path, 1, 2, "dist.barrier()")
    # What was printed is not lost, destructors, which may hang in a broken group, do not run.
    code, out, err = finish(failing)
    assert (code, out) == (1, "step 1\n")
    assert err.endswith("[rank 0] first error: ConfigError: boom\n")
    code, out, err = finish(waiting)
    assert (code, out) == (1, "")
    assert f"[rank 1] stops: rank 0 failed first, see {tmp_path}/errors/rank_0.txt\n" in err
