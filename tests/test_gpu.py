"""One-GPU checks: the same code on a device, without a change."""

import json

import pytest
import torch
from launching import launch, losses, write_config, write_small_log

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
    )
    assert done.returncode == 0, done.stdout
    by_step = losses(run)
    assert by_step[max(by_step)] < by_step[1]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["hr@10"] > metrics["popularity"]["hr@10"]


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
