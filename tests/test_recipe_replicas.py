"""Replicas that train apart, as a user starts them."""

import json
import subprocess
import sys

import pytest
from launching import RECIPE, ROOT, environment, free_port, launch, write_config, write_small_log

pytestmark = [pytest.mark.launch, pytest.mark.timeout(300)]


def test_replicas_at_their_own_pace_learn_and_go_on(tmp_path):
    log = write_small_log(tmp_path / "log")
    section = {"data_parallel": {"mode": "bounded_staleness", "local_steps": 4}}
    config = write_config(tmp_path / "ds.json", recparallel=section)
    run = tmp_path / "run"
    arguments = ["--deepspeed_config", str(config), "--dataset", "movielens-100k", "--data_dir", str(log)]
    arguments += ["--output_dir", str(run), "--max_length", "16", "--learning_rate", "3e-3", "--eval_epochs", "5"]
    first = launch(2, *arguments, "--num_train_epochs", "6", "--save_steps", "10")
    assert first.returncode == 0, first.stdout
    assert "2 replicas apart (bounded_staleness)" in first.stdout
    assert "epoch 5: valid HR@10" in first.stdout
    second = launch(2, *arguments, "--num_train_epochs", "10", "--resume")
    assert second.returncode == 0, second.stdout
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["hr@10"] > metrics["popularity"]["hr@10"]
    assert metrics["steps"] >= 100  # ten epochs of ten global batches, on the clock of all


@pytest.mark.slow  # of what it takes, tests/engines/test_replica_gate.py tries everything but the launch
def test_a_mode_that_spoils_recommendations_is_left(tmp_path):
    log = write_small_log(tmp_path / "log")
    spoiled = {"mode": "diloco", "local_steps": 4, "outer_learning_rate": 3.0, "outer_momentum": 0.9}
    config = write_config(tmp_path / "ds.json", recparallel={"data_parallel": {**spoiled, "gate": {"margin": 0.1}}})
    run = tmp_path / "run"
    arguments = ["--deepspeed_config", str(config), "--dataset", "movielens-100k", "--data_dir", str(log)]
    arguments += ["--output_dir", str(run), "--max_length", "16", "--learning_rate", "3e-3", "--eval_epochs", "2"]
    done = launch(2, *arguments, "--num_train_epochs", "12")
    assert done.returncode == 0, done.stdout
    assert "replicas fall back from 'diloco' to 'local_sgd'" in done.stdout
    assert json.loads((run / "metrics.json").read_text())["plan"]["data_parallel"] == "local_sgd"
    seen = json.loads((run / "gate.json").read_text())
    assert len(seen) == 5  # it goes on watching


def test_replicas_learn_apart(tmp_path):
    log = write_small_log(tmp_path / "log")
    section = {"data_parallel": {"mode": "diloco", "local_steps": 4, "overlap": 1, "compression": "int8"}}
    config = write_config(tmp_path / "ds.json", recparallel=section)
    run = tmp_path / "run"
    arguments = ["--deepspeed_config", str(config), "--dataset", "movielens-100k", "--data_dir", str(log)]
    arguments += ["--output_dir", str(run), "--max_length", "16", "--learning_rate", "3e-3", "--eval_epochs", "5"]
    first = launch(2, *arguments, "--num_train_epochs", "10", "--save_steps", "10")
    assert first.returncode == 0, first.stdout
    assert "2 replicas apart (diloco)" in first.stdout
    assert first.stdout.count("pipeline cut by") == first.stdout.count("valid HR@10") == 1  # one replica speaks
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["hr@10"] > metrics["popularity"]["hr@10"]
    assert (metrics["plan"]["replicas"], metrics["plan"]["data_parallel"]) == (2, "diloco")
    assert (run / "checkpoints" / "replica_1" / "latest").is_file()


@pytest.mark.slow
def test_torchrun_starts_replicas_too(tmp_path):
    """Its agent has a store at the address of the launch already."""
    log = write_small_log(tmp_path / "log")
    config = write_config(tmp_path / "ds.json", recparallel={"data_parallel": {"mode": "local_sgd", "local_steps": 4}})
    arguments = ["--deepspeed_config", str(config), "--dataset", "movielens-100k", "--data_dir", str(log)]
    arguments += [
        "--output_dir",
        str(tmp_path / "run"),
        "--max_length",
        "16",
        "--max_steps",
        "8",
        "--report_to",
        "none",
    ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    done = subprocess.run(
        [*torchrun, str(RECIPE), *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "2 replicas apart (local_sgd)" in done.stdout
