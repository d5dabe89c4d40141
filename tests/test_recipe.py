"""The main job as a user starts it: launches, what they write, and what happens when a rank dies."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from launching import RECIPE, command, environment, launch, losses, write_config, write_small_log
from transformers import HfArgumentParser

from recparallel.checkpointing.export import find_checkpoint
from recparallel.errors import CheckpointError, ConfigError, RecParallelError

pytestmark = [pytest.mark.launch, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("log"))


def _arguments(config: Path, log: Path, output_dir: Path, *more: str) -> list[str]:
    named = {
        "--deepspeed_config": config,
        "--dataset": "movielens-100k",
        "--data_dir": log,
        "--output_dir": output_dir,
        "--max_length": 16,
        "--learning_rate": 3e-3,
    }
    return [*(str(part) for pair in named.items() for part in pair), *more]


def test_a_run_writes_what_it_promises(log, tmp_path):
    config = write_config(tmp_path / "ds.json", recparallel={"stages": 2, "lengths": "packed"})
    lengths = ("--num_train_epochs", "12", "--eval_epochs", "6", "--early_stopping_patience", "5", "--save_steps", "9")
    done = launch(2, *_arguments(config, log, tmp_path / "run", *lengths))
    assert done.returncode == 0, done.stdout
    for promised in (
        "pipeline cut by 'profile'",
        "train:",
        "valid HR@10",
        "popularity HR@10",
        f"written to {tmp_path / 'run'}",
    ):
        assert promised in done.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) >= {"hr@10", "ndcg@10", "popularity", "sequences_per_s", "plan", "protocol"}
    assert metrics["plan"]["pipeline"] == 2
    assert find_checkpoint(tmp_path / "run" / "best").name == f"step_{metrics['best_step']}"
    assert 0 < metrics["best_step"] <= metrics["steps"]
    assert metrics["without_target"] < 0.25 < metrics["sequences_per_s"] < metrics["targets_per_s"]
    assert metrics["hr@10"] > metrics["popularity"]["hr@10"]
    assert "full ranking" in metrics["protocol"]
    by_step = losses(tmp_path / "run")
    assert by_step[max(by_step)] < by_step[1]
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("processes", "section", "more", "under"),
    [
        pytest.param(
            2,
            {"stages": 1, "compression": {"codec": "top_k", "ratio": 0.1}},
            {"zero_optimization": {"stage": 1}},
            None,
            marks=pytest.mark.slow,  # in one launch after the other; engines/test_checkpoint.py has it in one process
        ),
        pytest.param(
            2,
            {"stages": 2, "spread_head": True},
            {},
            {"recparallel": {"stages": 1, "tensor": 2}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["top_k with ZeRO-1", "pipeline with a spread head, resumed as tensor ranks"],
)
def test_resume_gives_the_losses_of_the_uninterrupted_run(log, tmp_path, monkeypatch, processes, section, more, under):
    config = write_config(tmp_path / "ds.json", recparallel=section, **more)
    # Attention drops by rank where ranks share it, and a head that stages share is one of its own.
    model = ("--dropout", "0.0", "--tied", "false") if "spread_head" in section else ("--dropout", "0.2")
    options = ("--report_to", "none", "--eval_epochs", "0", *model)

    def run(name: str, *extra: str, config: Path = config) -> None:
        done = launch(processes, *_arguments(config, log, tmp_path / name, *options, *extra))
        assert done.returncode == 0, done.stdout

    run("whole", "--max_steps", "24")
    run("halves", "--max_steps", "13")  # in the middle of the second epoch
    with pytest.raises(ConfigError, match="go on with --resume"):
        _run_here(monkeypatch, processes, _arguments(config, log, tmp_path / "halves"))
    other = write_config(tmp_path / "other.json", **(under or {"recparallel": {"stages": 2}}))
    if under is None:
        with pytest.raises(CheckpointError, match="pipeline: stored 1, now 2"):
            _run_here(monkeypatch, processes, _arguments(other, log, tmp_path / "halves", "--resume"))
    run("halves", "--max_steps", "24", "--resume", config=other if under else config)
    whole, halves = losses(tmp_path / "whole"), losses(tmp_path / "halves")
    assert halves.keys() == whole.keys() == set(range(1, 25))
    # The same sums in the same order, 1e-6 for the printed digits; under another plan in another order.
    assert halves == pytest.approx(whole, rel=1e-5 if under else 1e-6)
    ranked = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "halves")]
    assert ranked[0]["ndcg@10"] == pytest.approx(ranked[1]["ndcg@10"], rel=1e-6)


def test_a_killed_rank_ends_the_job_and_the_checkpoint_resumes(log, tmp_path):
    victim = 0  # that of rank 1 is killed in the middle of a move: tests/engines/test_killed_moves.py
    config = write_config(tmp_path / "ds.json")
    output = tmp_path / "run"
    protocol = ("--split", "temporal", "--split_share", "0.2", "--ranking", "sampled-20", "--filter_seen", "false")
    options = ("--report_to", "none", "--eval_epochs", "0", "--save_steps", "5", *protocol)
    arguments = _arguments(config, log, output, *options)
    job = subprocess.Popen(
        command(2, *arguments, "--max_steps", "100000"),
        cwd=Path(__file__).parent.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_for(lambda: (output / "checkpoints" / "latest").is_file(), job)
        os.kill(_rank_process(job.pid, victim), signal.SIGKILL)
        died = time.monotonic()
        printed, _ = job.communicate(timeout=60)
        assert job.returncode != 0
        assert time.monotonic() - died < 60
        # The launcher may notice the victim first, or the survivor that lost it.
        assert "return code = -9" in printed or "lost a peer" in printed
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    stored = int((output / "checkpoints" / "latest").read_text().removeprefix("step_"))
    done = launch(2, *arguments, "--max_steps", str(stored + 3), "--resume")
    assert done.returncode == 0, done.stdout
    last = json.loads((output / "losses.jsonl").read_text().splitlines()[-1])
    assert (
        last["step"] == stored + 3
    )  # steps behind the checkpoint were done once before the kill, and are in the file too
    said = json.loads((output / "metrics.json").read_text())["protocol"]
    assert said.startswith("global temporal, the last 0.2 of all events for test, a user's first one as target, ")
    assert "ranking among 20 sampled items, seen items left in" in said


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"recparallel": {"stage": 2}}, [], ["recparallel.stage", "Did you mean 'stages'"]),
        ({"recparallel": {"stages": 2, "partition": {"method": "profil"}}}, [], ["'profil'", "Did you mean 'profile'"]),
        ({"recparallel": {"stages": 3}}, [], ["stages is 3", "2 processes"]),
        ({"zero_optimization": {"stage": 2}}, [], ["ZeRO-2", "use stage 0 or 1"]),
        ({"train_batch_size": 18}, [], ["18", "not a multiple of 4"]),
        ({}, ["--dataset", "movielens-100"], ["'movielens-100'", "Did you mean 'movielens-100k'"]),
        ({}, ["--model", "lama-tiny"], ["'lama-tiny'", "Did you mean 'llama-tiny'"]),
        ({}, ["--data_dir", "/nowhere"], ["/nowhere", "u.data", "grouplens"]),
        ({}, ["--split", "temporel"], ["--split", "'temporel'", "Did you mean 'temporal'"]),
        ({}, ["--ranking", "best"], ["'best'", "full, and sampled-N"]),
        ({}, ["--min_user_events", "90"], ["no history is left", "90 events (min_user_events)"]),
        ({}, ["--data_options", "user"], ["--data_options: expected name=value", "'user'"]),
        ({}, ["--loss", "answers"], ["'answers' is for prompts", "recipes/train_click.py"]),
        ({}, ["--num_train_epochs", "0"], ["--num_train_epochs must be at least 1, got 0"]),
        ({"train_batch_size": "auto"}, [], ["train_batch_size must be an integer", "'auto'"]),
    ],
    ids=[
        "key",
        "method",
        "stages",
        "zero",
        "batch",
        "dataset",
        "model",
        "data",
        "split",
        "ranking",
        "filter",
        "options",
        "loss",
        "epochs",
        "auto",
    ],
)
def test_bad_input_is_refused_before_any_process_group(log, tmp_path, monkeypatch, changes, arguments, said):
    config = write_config(tmp_path / "ds.json", **changes)
    with pytest.raises(RecParallelError) as refused:
        _run_here(monkeypatch, 2, _arguments(config, log, tmp_path / "run", *arguments))
    for words in said:
        assert words in str(refused.value)
    assert not dist.is_initialized()


def test_more_stages_than_layers(log, tmp_path, monkeypatch):
    config = write_config(tmp_path / "ds.json", recparallel={"stages": 6})
    with pytest.raises(ConfigError, match="stages is 6, but the model has only 5 layers"):
        _run_here(monkeypatch, 6, _arguments(config, log, tmp_path / "run"))


def test_a_refusal_ends_the_launch_with_one_message(log, tmp_path):
    config = write_config(tmp_path / "ds.json")
    done = launch(2, *_arguments(config, log, tmp_path / "run", "--dataset", "movielens-100"), timeout=120)
    assert done.returncode != 0
    assert "first error: UnknownNameError: unknown dataset 'movielens-100'" in done.stdout
    assert "Traceback" not in done.stdout


def _run_here(monkeypatch, processes: int, arguments: list[str]) -> None:
    """What a rank does until the ranks would start to talk, in this process, so that its error can be caught."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    spec = importlib.util.spec_from_file_location("train_rec", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_rec", recipe)
    spec.loader.exec_module(recipe)
    parsed = HfArgumentParser(
        (recipe.ModelArguments, recipe.DataArguments, recipe.TrainingArguments)
    ).parse_args_into_dataclasses(arguments)
    recipe.check(parsed, Path(parsed[2].output_dir))
    recipe.train(parsed, Path(parsed[2].output_dir))


def _wait_for(condition, job: subprocess.Popen, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _rank_process(launcher: int, rank: int) -> int:
    """Process id of one rank: a descendant of the launcher with ``RANK`` in its environment."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _session(int(folder.name)) == launcher:
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                program = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if f"RANK={rank}".encode() in variables and b"train_rec.py" in program:
                return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1
