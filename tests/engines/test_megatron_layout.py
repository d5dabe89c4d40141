"""Megatron-Core trains a model by our layout: every layer once, and the losses of one process."""

import pytest
from megatron_training import NUM_LAYERS, train_gpt

from recparallel.partitioning.bottleneck import minimize_bottleneck
from recparallel.partitioning.megatron_layout import megatron_layout
from recparallel.plan import LayerCost, Profile

pytest.importorskip("megatron.core", reason="megatron-core is not installed")


def layout_for(stages):
    kinds = ["embedding", *["block"] * NUM_LAYERS, "head"]
    layers = [
        LayerCost(name=f"layer {i}", kind=kind, forward_seconds=4 if kind == "head" else 1, backward_seconds=0)
        for i, kind in enumerate(kinds)
    ]
    profile = Profile(layers=tuple(layers), micro_batch=1, sequence_length=1)
    return megatron_layout(profile, minimize_bottleneck(profile, stages))


def test_a_pipeline_by_our_layout_has_every_layer_once_and_the_losses_of_one_process(pools):
    layout = layout_for(2)
    assert layout == "Et*4|tL"
    (alone,) = pools[1].run(train_gpt, pipeline=1, layout=None, steps=20, micro_batches=4)
    front, back = pools[2].run(train_gpt, pipeline=2, layout=layout, steps=20, micro_batches=4)
    assert front["layers"] + back["layers"] == alone["layers"] == list(range(NUM_LAYERS))
    assert (front["embedding"], back["embedding"]) == (True, False)
    assert (front["head"], back["head"]) == (False, True)
    assert back["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert back["losses"][-1] < back["losses"][0]
