"""One-GPU checks: the same code on a device, without a change."""

import json
import subprocess
import sys

import pytest
import torch
from launching import RECIPE, ROOT, environment, free_port, launch, losses, write_config, write_small_log

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
def test_the_recipe_trains(tmp_path, precision):
    log = write_small_log(tmp_path / "log")
    config = write_config(tmp_path / "ds.json", recparallel={"stages": 1}, **precision)
    run = tmp_path / "run"
    done = launch(
        1,
        *("--deepspeed_config", str(config), "--dataset", "movielens-100k", "--data_dir", str(log)),
        *("--output_dir", str(run), "--max_length", "16", "--num_train_epochs", "12", "--learning_rate", "3e-3"),
        *("--report_to", "none"),
    )
    assert done.returncode == 0, done.stdout
    by_step = losses(run)
    assert by_step[max(by_step)] < by_step[1]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["hr@10"] > metrics["popularity"]["hr@10"]


def test_replicas_apart_share_the_card_and_resume(tmp_path):
    log = write_small_log(tmp_path / "log")
    section = {"data_parallel": {"mode": "diloco", "local_steps": 4, "overlap": 1, "compression": "int8"}}
    config = write_config(tmp_path / "ds.json", recparallel=section, bf16={"enabled": True})
    run = tmp_path / "run"
    arguments = ["--deepspeed_config", str(config), "--dataset", "movielens-100k", "--data_dir", str(log)]
    arguments += ["--output_dir", str(run), "--max_length", "16", "--learning_rate", "3e-3", "--report_to", "none"]
    told = as_two_machines(*arguments, "--max_steps", "20")
    assert "2 replicas apart (diloco)" in told
    as_two_machines(*arguments, "--max_steps", "60", "--resume")
    by_step = losses(run)
    assert len(by_step) == 60
    assert by_step[60] < by_step[1]


def as_two_machines(*arguments: str) -> str:
    """Two processes that each take the one card for their own, as on two machines; what they told."""
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RECIPE), *arguments],
            cwd=ROOT,
            env={
                **environment(),
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "0",
                "LOCAL_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)
    return "\n".join(told)


def test_layers_are_timed_on_the_device():
    from training import Run, global_batches, recommender

    from recparallel.profiling.layers import profile_layers

    rec = recommender(Run())
    profile = profile_layers(rec.layers, rec.loss_fn, global_batches(1)[0][0], device="cuda", dtype=torch.bfloat16)
    assert profile.dtype == "bfloat16"
    assert all(layer.forward_seconds > 0 for layer in profile.layers)


def test_top_k_on_the_device_equals_the_cpu():
    from recparallel.compression.top_k import TopK

    flat = torch.randn(10_001)
    codec = TopK(ratio=0.01)
    decoded = [torch.zeros_like(flat), torch.zeros_like(flat)]
    codec.add_decoded(codec.encode(flat), decoded[0])
    on_device = torch.zeros_like(flat, device="cuda")
    codec.add_decoded(codec.encode(flat.cuda()), on_device)
    assert torch.equal(on_device.cpu(), decoded[0])
