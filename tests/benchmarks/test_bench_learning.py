"""Losses after as many steps and after as long, and histories that can be learned."""

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.batches import global_batch
from benchmarks.learning import Speeds, after_as_long, run, table_of
from benchmarks.learning_plot import Panel, plot_curves
from benchmarks.options import Options
from benchmarks.peers.trainer import Setting
from benchmarks.workloads import LEARNABLE, get_workload
from recparallel.errors import ConfigError

DENSE, FEWER = [9.0 - 0.1 * step for step in range(10)], [9.0 - 0.05 * step for step in range(10)]


def test_a_side_that_is_twice_as_fast_makes_twice_the_steps() -> None:
    """Ten steps of the fast one take as long as five of the dense one: the means are of steps 7 to 10, and of 2 to 5."""
    columns, lines = table_of(
        {"ddp": DENSE, "ddp fast": FEWER}, [Speeds("flat", {"ddp": 2.0, "ddp fast": 1.0}), Speeds("two_tier", {})]
    )
    assert columns[1:] == ("loss after 10 steps", "`flat`: loss after as long", "`two_tier`: loss after as long")
    assert lines == [
        ("ddp", "8.250", "8.750 (5 steps)", ""),
        ("ddp fast", "8.625", "8.625 (10 steps)", ""),
    ]
    assert after_as_long(DENSE, [1.0, 2.0], 0.4) == "no step yet"


def test_dense_steps_at_the_start_take_as_long_as_dense_ones() -> None:
    assert Speeds("flat", {"ddp": 2.0, "ddp powersgd": 0.5}).times("ddp powersgd", 4) == [2.0, 4.0, 4.5, 5.0]
    assert Speeds("flat", {"ddp powersgd": 0.5}).times("ddp powersgd", 4) == []


def test_a_setting_is_read_from_its_words() -> None:
    setting = Setting(16, "bf16")
    assert Setting.from_words(str(setting)) == setting


def test_histories_can_be_learned_and_are_the_same_everywhere() -> None:
    """Half of all items are a few popular ones, and most neighbours are of one group."""
    workload = dataclasses.replace(get_workload(LEARNABLE["head"]), global_batch=256)
    inputs_GL, labels_GL = global_batch(workload, 5)
    assert torch.equal(inputs_GL, global_batch(workload, 5)[0])
    assert torch.equal(inputs_GL[:, 1:], labels_GL[:, :-1])
    assert int(inputs_GL.min()) >= 1
    assert int(inputs_GL.max()) <= workload.num_items
    counts = torch.bincount(inputs_GL.view(-1), minlength=workload.num_items + 1).sort(descending=True).values
    assert counts[:1000].sum() > 0.5 * counts.sum()
    groups_GL = (inputs_GL - 1) // 100
    assert 0.85 < float((groups_GL[:, 1:] == groups_GL[:, :-1]).float().mean()) < 0.97


def test_only_workloads_with_such_histories_are_taken() -> None:
    with pytest.raises(ConfigError, match="--workload deep: learning has histories for head, catalogue"):
        run(Options(workloads=("deep",)))


def test_curves_are_drawn(tmp_path: Path) -> None:
    plot_curves(
        {"ddp": DENSE},
        [Panel("flat", {"ddp": range(10)}, 9.0), Panel("fast", {"ddp": []}, 0.0)],
        tmp_path / "curves.png",
    )
    assert (tmp_path / "curves.png").stat().st_size > 5_000
