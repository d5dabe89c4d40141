"""Replicas that train apart, as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from launching import RECIPE, ROOT, command, environment, free_port, launch, write_config, write_small_log

from recparallel.engines.replica_membership import host_meeting_point

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


@pytest.mark.slow  # the test above has a launch of them too
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


@pytest.mark.slow  # tests/engines/test_replicas_elastic.py tries the same without the launcher
def test_launches_come_and_go(tmp_path):
    log = write_small_log(tmp_path / "log")
    store = host_meeting_point(0)
    elastic = {"endpoint": f"127.0.0.1:{store.port}", "last_call_s": 2.0, "heartbeat_s": 1}
    section = {"data_parallel": {"mode": "diloco", "local_steps": 4, "replicas": 2, "elastic": elastic}}
    config = write_config(tmp_path / "ds.json", train_micro_batch_size_per_gpu=2, recparallel={**section, "stages": 2})
    arguments = ["--deepspeed_config", str(config), "--dataset", "movielens-100k", "--data_dir", str(log)]
    arguments += ["--max_length", "16", "--learning_rate", "3e-3", "--eval_epochs", "50", "--save_steps", "50"]

    def start(name: str, *more: str) -> subprocess.Popen[str]:
        own = command(2, *arguments, *more, "--output_dir", str(tmp_path / name))
        out = (tmp_path / f"{name}.log").open("w")
        return subprocess.Popen(
            own, cwd=ROOT, env=environment(), stdout=out, stderr=out, text=True, start_new_session=True
        )

    def told(name: str) -> str:
        return (tmp_path / f"{name}.log").read_text()

    def wait_for(name: str, words: str) -> None:
        end = time.monotonic() + 120
        while words not in told(name):
            assert time.monotonic() < end, told(name)[-4000:]
            time.sleep(0.2)

    stays, dies = start("stays", "--num_train_epochs", "80"), start("dies", "--num_train_epochs", "80")
    wait_for("stays", "2 replicas from here on")
    wait_for("stays", "epoch=5,")
    os.killpg(dies.pid, signal.SIGKILL)
    wait_for("stays", "1 replicas from here on, 2 before")
    comes = start("comes", "--num_train_epochs", "80")
    wait_for("stays", "2 replicas from here on, 1 before")
    assert stays.wait(timeout=240) == comes.wait(timeout=240) == 0, told("stays")[-4000:] + told("comes")[-4000:]
    ranks = [json.loads((tmp_path / name / "test_ranks.json").read_text()) for name in ("stays", "comes")]
    assert ranks[0] == ranks[1]
    metrics = json.loads((tmp_path / "comes" / "metrics.json").read_text())
    assert metrics["steps"] >= 800  # eighty epochs of ten global batches, whoever read them
    assert metrics["hr@10"] > metrics["popularity"]["hr@10"]
    assert "epoch 50: valid HR@10" in told("stays")

    config.write_text(config.read_text().replace('"elastic": {', '"elastic": {"run": "again", '))
    again = start("stays", "--num_train_epochs", "84", "--resume")
    assert again.wait(timeout=120) == 0, told("stays")[-4000:]
    assert json.loads((tmp_path / "stays" / "metrics.json").read_text())["steps"] >= 840
