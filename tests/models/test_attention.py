"""Another way to compute attention is taken by all layers, and only where it gives the same."""

import pytest
import torch

from recparallel import build_recommender
from recparallel.errors import ConfigError
from recparallel.models.attention import with_attention
from recparallel.models.trunk import Trunk

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LLAMA = {"model_type": "llama", **SIZE, "vocab_size": 8, "pad_token_id": None}
GEMMA2 = {**LLAMA, "model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, "vocab_size": 8}


def attentions_of(recommender):
    return {layer.kwargs["config"]._attn_implementation for layer in recommender.layers if "config" in layer.kwargs}


def test_all_layers_take_it_and_the_model_that_was_given_stays():
    rec = build_recommender(LLAMA, num_items=7)
    before = attentions_of(rec)
    changed = with_attention(rec, "eager")
    assert attentions_of(changed) == {"eager"}
    assert changed.config._attn_implementation == "eager"
    assert Trunk.of(changed.config).attentions == ("eager", "sdpa")
    assert attentions_of(rec) == before
    assert [layer.name for layer in changed.layers] == [layer.name for layer in rec.layers]
    assert with_attention(changed, "eager") is changed


@pytest.mark.parametrize(
    ("model", "own"),
    [
        (GEMMA2, "eager"),
        ({**GPT2, "reorder_and_upcast_attn": True}, None),
    ],
)
def test_what_would_give_other_results_is_refused(model, own):
    rec = build_recommender(model, num_items=7)
    (only,) = Trunk.of(rec.config).attentions
    other = "sdpa" if only == "eager" else "eager"
    assert own in (None, only)
    with pytest.raises(ConfigError, match=f"recparallel.attention is {other!r}, .* is computed by {only}$"):
        with_attention(rec, other)


def test_gemma_2_without_a_cap_has_one_all_the_same():
    rec = build_recommender({**GEMMA2, "attn_logit_softcapping": None}, num_items=7)
    assert Trunk.of(rec.config).attentions == ("eager",)  # transformers has no other for it


@pytest.mark.parametrize("model", [LLAMA, GEMMA2, {**GEMMA2, "attn_logit_softcapping": None}, GPT2])
def test_a_block_can_be_built_under_each_of_them(model):
    rec = build_recommender(model, num_items=7)
    for name in Trunk.of(rec.config).attentions:
        block = next(layer for layer in with_attention(rec, name).layers if layer.name == "blocks.0")
        assert block.build()(torch.randn(2, 5, 16)).shape == (2, 5, 16)
