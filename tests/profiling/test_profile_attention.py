"""Every way to compute attention is timed on one block of each kind."""

import dataclasses

import pytest
import torch

from recparallel import build_recommender
from recparallel.models.attention import with_attention
from recparallel.models.layers import DecoderBlock
from recparallel.profiling.attention import time_attentions

MIXED = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "use_sliding_window": True,
    "sliding_window": 3,
    "max_window_layers": 1,
    "vocab_size": 8,
}


class OutOfMemory(DecoderBlock):
    """One that a device has no room for."""

    def forward(self, hidden_BLD):
        raise torch.OutOfMemoryError("too long")


def test_one_that_fails_takes_for_ever_unless_it_is_the_models_own():
    layers = build_recommender(MIXED, num_items=7).layers
    failing = [
        dataclasses.replace(layer, module_class=OutOfMemory) if layer.module_class is DecoderBlock else layer
        for layer in layers
    ]
    seconds = time_attentions({"sdpa": layers, "eager": failing}, (2, 5), 16)
    assert seconds["sdpa"] < seconds["eager"] == float("inf")
    with pytest.raises(torch.OutOfMemoryError):
        time_attentions({"sdpa": failing, "eager": layers}, (2, 5), 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_block_of_each_kind_is_timed_and_the_random_state_stays(dtype, monkeypatch):
    rec = build_recommender(MIXED, num_items=7)
    built = []
    original = DecoderBlock.__init__

    def watched(self, **kwargs):
        built.append((kwargs["config"]._attn_implementation, kwargs["index"]))
        original(self, **kwargs)

    monkeypatch.setattr(DecoderBlock, "__init__", watched)
    state = torch.random.get_rng_state()
    layers_of = {name: with_attention(rec, name).layers for name in ("eager", "sdpa")}
    seconds = time_attentions(layers_of, (2, 5), 16, dtype=dtype)
    assert list(seconds) == ["eager", "sdpa"]
    assert min(seconds.values()) > 0
    assert {index for _, index in built} == {0, 1}  # the first with all positions, the first with a window
    assert len(built) == 4
    assert torch.equal(torch.random.get_rng_state(), state)
