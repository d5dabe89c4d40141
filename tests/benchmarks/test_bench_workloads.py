"""Workloads: their models, their batches, and that every peer computes the same loss of the same batch."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.batches import global_batch, micro_batches, num_targets
from benchmarks.peers.sides import SIDES, get_side, sides_for
from benchmarks.peers.trainer import Job, Setting
from benchmarks.peers.whole import WholeModel
from benchmarks.workloads import WORKLOADS, Workload, get_workload
from recparallel.errors import UnknownNameError

SMALL = Workload("head", blocks=2, width=16, ffn=24, heads=2, num_items=50, tied=False, length=6, global_batch=8)
TIED = dataclasses.replace(
    SMALL, name="catalogue", tied=True, loss="sampled_softmax", loss_options={"num_negatives": 8}
)


@pytest.mark.parametrize(
    ("name", "blocks", "width", "items", "tied", "length"),
    [
        ("head", 8, 256, 20_000, False, 100),
        ("catalogue", 4, 128, 200_000, True, 50),
        ("deep", 24, 192, 4_000, False, 50),
        ("ragged", 4, 128, 3_706, True, 200),
    ],
)
def test_the_four_workloads_have_the_layers_they_promise(
    name: str, blocks: int, width: int, items: int, tied: bool, length: int
) -> None:
    workload = get_workload(name)
    recommender = workload.recommender()
    assert len(recommender.layers) == blocks + 3
    assert recommender.config.hidden_size == width
    assert (recommender.num_items, recommender.tied) == (items, tied)
    assert (workload.length, workload.global_batch) == (length, 64)


def test_an_unknown_workload_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="catalogue"):
        get_workload("catalog")


def test_a_global_batch_is_the_same_everywhere_and_divided_without_loss() -> None:
    whole = global_batch(SMALL, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, global_batch(SMALL, 3)))
    assert not torch.equal(whole[0], global_batch(SMALL, 4)[0])
    parts = [
        part for replica in (0, 1) for part in micro_batches(SMALL, 3, micro_batch=2, replica=replica, num_replicas=2)
    ]
    assert [len(inputs) for inputs, _ in parts] == [2, 2, 2, 2]
    assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1])
    assert int(whole[0].min()) >= 1
    assert int(whole[0].max()) <= SMALL.num_items
    with pytest.raises(ValueError, match="no multiple"):
        micro_batches(SMALL, 0, micro_batch=3)


def test_real_histories_keep_their_lengths_and_their_last_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sequences.txt").write_text("1 10 30 20\n2 20 10\n3 30 30 10 20 10 30 20 10 20\n")
    monkeypatch.setenv("RECPARALLEL_DATA", str(tmp_path))
    ragged = dataclasses.replace(SMALL, file="sequences.txt", num_items=3, length=4)
    assert ragged.missing() is None
    inputs, labels = global_batch(ragged, 0)
    lengths = (inputs != 0).sum(1).tolist()
    assert set(lengths) <= {1, 2, 4}
    assert num_targets(ragged, 0) == sum(lengths)
    for row, length in enumerate(lengths):
        assert (labels[row, length:] == -100).all()
    longest = [row.tolist() for row in inputs if int((row != 0).sum()) == 4]
    assert all(row == [1, 3, 2, 1] for row in longest)  # the five last of nine items, as inputs


def test_missing_data_is_a_reason_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPARALLEL_DATA", str(tmp_path))
    reason = get_workload("ragged").missing()
    assert reason is not None
    assert "RECPARALLEL_DATA" in reason


def test_histories_of_movielens_have_the_items_that_the_workload_says() -> None:
    ragged = get_workload("ragged")
    if reason := ragged.missing():
        pytest.skip(reason)
    inputs, _ = global_batch(ragged, 0)
    assert inputs.shape == (64, 200)
    assert int(inputs.max()) <= ragged.num_items
    assert 0 < num_targets(ragged, 0) < 64 * 200


@pytest.mark.parametrize("sparse", [False, True])
def test_the_whole_model_has_the_loss_and_gradients_of_the_layers_one_by_one(sparse: bool) -> None:
    recommender = TIED.recommender()
    inputs, labels = global_batch(TIED, 0)
    model = WholeModel(recommender, sparse=sparse)
    torch.manual_seed(5)
    loss = model(inputs, labels)
    loss.backward()
    reference = WholeModel(recommender)
    hidden = inputs
    for layer, module in zip(recommender.layers, reference.parts):
        hidden = layer.run(module, hidden)
    torch.manual_seed(5)
    expected = recommender.loss_fn(hidden, labels)  # type: ignore[arg-type]
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradient, wanted = model.table.weight.grad, reference.table.weight.grad
    assert gradient is not None
    assert wanted is not None
    assert gradient.is_sparse == sparse
    torch.testing.assert_close(gradient.to_dense() if sparse else gradient, wanted, rtol=1e-5, atol=1e-7)


def test_every_peer_that_the_issue_names_is_a_side() -> None:
    on_catalogue = {side.name for side in sides_for(WORKLOADS["catalogue"])}
    assert {side.name for side in sides_for(WORKLOADS["head"])} < on_catalogue
    assert {"ds dp", "ds zero1", "ds pp uniform", "ds pp parameters", "ds pp2 dp2", "ds dualpipev"} < on_catalogue
    assert {"ds autotp", "ds dp sparse", "ddp", "ddp fp16", "ddp powersgd", "ddp sparse"} < on_catalogue


@pytest.mark.parametrize("name", SIDES)
def test_micro_batches_that_are_tried_divide_each_sides_share(name: str) -> None:
    side, workload = get_side(name), WORKLOADS["head"]
    sizes = side.micro_batches(workload, 4)
    share = workload.global_batch // side.replicas(4)
    assert 1 <= len(sizes) <= 3
    assert all(share % size == 0 for size in sizes)
    if side.options.get("dualpipev"):
        assert all(share // size >= 2 * (side.stages or 4) for size in sizes)


def test_a_job_survives_the_command_line() -> None:
    job = Job("x (control)", "ds dp", "head", Setting(4, "bf16"), warmup=2, steps=3, global_batch=32)
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert job.spec.global_batch == 32
