"""A parameter's global name is the one that the Hugging Face model gives it."""

import copy

import pytest
import torch
from training import LENGTH
from transformers import AutoModelForCausalLM

from recparallel.checkpointing.names import global_name
from recparallel.models.layer import Layer
from recparallel.models.recommender import build_recommender
from recparallel.models.trunk import Trunk

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 8, "pad_token_id": None}
FAMILIES = {
    "llama": {**SIZE, "intermediate_size": 24},
    "phi3": {**SIZE, "intermediate_size": 24},
    "gemma2": {
        **SIZE,
        "intermediate_size": 24,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "final_logit_softcapping": None,
    },
    "gpt_neox": {**SIZE, "intermediate_size": 24},
    "opt": {**SIZE, "ffn_dim": 24, "max_position_embeddings": LENGTH},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LENGTH, "vocab_size": 8},
}


@pytest.mark.parametrize("num_items", [None, 40], ids=["tokens", "items"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_the_language_models(family, tied, num_items):
    architecture = {"model_type": family, **FAMILIES[family], "tie_word_embeddings": tied}
    recommender = build_recommender(architecture, num_items=num_items, tied=tied)
    trunk = Trunk.of(recommender.config)
    config = copy.deepcopy(recommender.config)
    config.vocab_size = recommender.num_items + 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found, seen = {}, set()
    for layer in recommender.layers:
        if layer.tie and layer.tie in seen:
            continue
        seen.add(layer.tie)
        for name, parameter in layer.build().named_parameters():
            found[global_name(layer, name, trunk)] = tuple(parameter.shape)
    assert found == expected


def test_another_layer_has_its_own_name():
    trunk = Trunk.of(build_recommender({"model_type": "llama", **FAMILIES["llama"]}, num_items=4).config)
    assert global_name(Layer("tower", torch.nn.Linear), "weight", trunk) == "tower.weight"
