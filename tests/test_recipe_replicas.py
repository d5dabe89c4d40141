"""Replicas that train apart, as a user starts them."""

import json

import pytest
from launching import launch, write_config, write_small_log

pytestmark = [pytest.mark.launch, pytest.mark.timeout(300)]


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
