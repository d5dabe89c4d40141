import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from recparallel import build_recommender
from recparallel.errors import CheckpointError, ConfigError, UnknownNameError
from recparallel.models import pretrained
from recparallel.models.pretrained import weights_folder, with_pretrained_weights
from recparallel.models.trunk import Trunk

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TOKENS = {"vocab_size": 13, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, **TOKENS}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, **TOKENS}


@pytest.fixture(autouse=True)
def quiet():
    disable_progress_bar()


def save(folder, *, family="llama", cls=AutoModelForCausalLM, tied=False, **how):
    config = AutoConfig.for_model(family, **(LLAMA if family == "llama" else GPT2), tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = cls.from_config(config)
    model.save_pretrained(folder, **how)
    return model


@pytest.fixture
def single(tmp_path):
    """A folder with one file of weights, and their names."""
    save(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    """A folder whose weights lie in many small files."""
    save(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 4
    assert not (tmp_path / SINGLE).exists()
    return tmp_path


def layers_of(folder, *, num_items=None, **options):
    rec = build_recommender(folder, num_items=num_items, **options)
    return {layer.name: layer for layer in rec.layers}


def part_of(module):
    return module.block if hasattr(module, "block") else module.part


def stored_tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


PLACES = {
    "embedding": "model.embed_tokens",
    "blocks.0": "model.layers.0",
    "blocks.1": "model.layers.1",
    "blocks.2": "model.layers.2",
    "norm": "model.norm",
    "head": "lm_head",
}


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_every_layer_loads_its_own_weights(request, kind):
    folder = request.getfixturevalue(kind)
    stored = stored_tensors(folder)
    found = set()
    for name, layer in layers_of(folder).items():
        for key, parameter in part_of(layer.build()).named_parameters():
            assert torch.equal(parameter, stored[f"{PLACES[name]}.{key}"])
            found.add(f"{PLACES[name]}.{key}")
    assert found == set(stored)


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_layer_reads_nothing_but_its_own_tensors(request, monkeypatch, kind):
    folder = request.getfixturevalue(kind)
    read = []

    class Watching:
        def __init__(self, path, framework):
            self.file = safe_open(path, framework=framework)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(pretrained, "safe_open", Watching)
    layers = layers_of(folder)
    assert read == []  # describing the layers reads none
    layers["blocks.1"].build()
    assert read
    assert all(name.startswith("model.layers.1.") for name in read)
    assert len(read) == len(set(read)) == 9


def test_a_layer_needs_no_other_layers_files(sharded):
    """What a stage does that has only its own part of the model on its disk."""
    files = json.loads((sharded / INDEX).read_text())["weight_map"]
    own = {file for name, file in files.items() if name.startswith("model.layers.1.")}
    others = {path.name for path in sharded.glob("*.safetensors")} - own
    assert others
    expected = {name: tensor for name, tensor in stored_tensors(sharded).items() if name.startswith("model.layers.1.")}
    layers = layers_of(sharded)
    for name in others:
        (sharded / name).unlink()
    for key, parameter in layers["blocks.1"].build().block.named_parameters():
        assert torch.equal(parameter, expected[f"model.layers.1.{key}"])
    with pytest.raises(CheckpointError):
        layers["blocks.2"].build()


def test_a_missing_file_is_named_with_the_tensor(sharded):
    file = json.loads((sharded / INDEX).read_text())["weight_map"]["model.norm.weight"]
    layer = layers_of(sharded)["norm"]
    (sharded / file).unlink()
    with pytest.raises(CheckpointError) as raised:
        layer.build()
    assert str(sharded / file) in str(raised.value)
    assert "'model.norm.weight'" in str(raised.value)


def _without(folder, name, replacement=None):
    """Rewrite the single file without a tensor, or with another one in its place."""
    tensors = load_file(folder / SINGLE)
    del tensors[name]
    if replacement is not None:
        tensors[name] = replacement
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def test_a_missing_tensor_is_named_with_the_file(single):
    _without(single, "model.layers.2.mlp.up_proj.weight")
    layers = layers_of(single)
    layers["blocks.1"].build()
    with pytest.raises(CheckpointError) as raised:
        layers["blocks.2"].build()
    assert str(raised.value) == (
        f"{single / SINGLE} has no tensor 'model.layers.2.mlp.up_proj.weight', which this model needs"
    )


def test_a_tensor_missing_from_the_index_is_named_with_the_index(sharded):
    index = json.loads((sharded / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as raised:
        layers_of(sharded)["norm"].build()
    assert str(raised.value) == f"{sharded / INDEX} lists no tensor 'model.norm.weight', which this model needs"


def test_a_tensor_of_another_shape_is_named_with_both_shapes(single):
    _without(single, "model.norm.weight", torch.zeros(17))
    with pytest.raises(CheckpointError) as raised:
        layers_of(single)["norm"].build()
    assert str(raised.value) == (f"'model.norm.weight' in {single / SINGLE} has shape [17], this model needs [16]")


def test_a_tensor_that_would_only_broadcast_is_refused(single):
    _without(single, "model.norm.weight", torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"has shape \[1\], this model needs \[16\]"):
        layers_of(single)["norm"].build()


@pytest.mark.parametrize("tied", [True, False])
def test_over_items_the_trunk_is_loaded_and_the_tables_are_new(single, tied):
    stored = stored_tensors(single)
    layers = layers_of(single, num_items=12, tied=tied)  # 13 rows, as the token table has
    block = layers["blocks.0"].build().block
    assert all(torch.equal(p, stored[f"model.layers.0.{key}"]) for key, p in block.named_parameters())
    for name in ("embedding", "head"):
        torch.manual_seed(1)
        first = layers[name].build().weight
        assert first.shape == (13, 16)
        torch.manual_seed(2)
        assert not torch.equal(layers[name].build().weight, first)  # drawn, so nothing was loaded
        for table in ("model.embed_tokens.weight", "lm_head.weight"):
            assert not torch.equal(first, stored[table])


def test_over_items_no_token_table_has_to_be_there(single):
    _without(single, "model.embed_tokens.weight")
    _without(single, "lm_head.weight")
    for layer in layers_of(single, num_items=5).values():
        layer.build()
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight"):
        layers_of(single)["embedding"].build()


def test_the_language_models_tables_can_be_left_out(single):
    rec = build_recommender(single, num_items=None, pretrained=False)
    loading = with_pretrained_weights(list(rec.layers), Trunk.of(rec.config), single, tokens=False)
    changed = {ours.name for ours, theirs in zip(loading, rec.layers) if ours is not theirs}
    assert changed == {"blocks.0", "blocks.1", "blocks.2", "norm"}


def test_a_tied_model_shares_the_loaded_table(tmp_path):
    save(tmp_path, tied=True)
    assert "lm_head.weight" not in stored_tensors(tmp_path)
    layers = layers_of(tmp_path)
    assert layers["head"].tie == layers["embedding"].tie is not None
    assert torch.equal(layers["head"].build().weight, stored_tensors(tmp_path)["model.embed_tokens.weight"])


def test_loading_can_be_switched_off(single):
    stored = stored_tensors(single)["model.layers.0.mlp.up_proj.weight"]
    torch.manual_seed(9)
    fresh = layers_of(single, pretrained=False)["blocks.0"].build().block.mlp.up_proj.weight
    assert not torch.equal(fresh, stored)


def test_loaded_weights_do_not_depend_on_the_seed(single):
    layer = layers_of(single)["blocks.0"]
    torch.manual_seed(1)
    first = layer.build().state_dict()
    torch.manual_seed(2)
    second = layer.build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not first["block.mlp.up_proj.weight"].is_meta


def test_classes_keep_their_names(single):
    """DeepSpeed's ``type:REGEX`` cuts by class name."""
    names = [layer.module_class.__name__ for layer in layers_of(single).values()]
    assert names == ["TokenEmbedding", "DecoderBlock", "DecoderBlock", "DecoderBlock", "FinalNorm", "TokenHead"]


def test_learned_positions_are_loaded_over_items_too(tmp_path):
    save(tmp_path, family="gpt2")
    positions = layers_of(tmp_path, num_items=5)["positions"].build().part.weight
    assert torch.equal(positions, stored_tensors(tmp_path)["transformer.wpe.weight"])


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "5KB"}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_folder_of_the_base_model_leaves_the_prefix_out(tmp_path, family, how):
    """As ``openai-community/gpt2`` does on the hub."""
    model = save(tmp_path, family=family, cls=AutoModel, **how)
    stored = stored_tensors(tmp_path)
    prefix = "layers" if family == "llama" else "h"
    assert any(name.startswith(f"{prefix}.0.") for name in stored)
    block = layers_of(tmp_path, num_items=5)["blocks.1"].build().block
    for key, parameter in block.named_parameters():
        assert torch.equal(parameter, stored[f"{prefix}.1.{key}"])
        assert torch.equal(parameter, model.get_parameter(f"{prefix}.1.{key}"))


def test_a_base_model_has_no_output_matrix_to_load(tmp_path):
    save(tmp_path, cls=AutoModel)
    with pytest.raises(CheckpointError, match=r"has no tensor 'lm_head\.weight'"):
        layers_of(tmp_path)["head"].build()


def test_weights_of_lower_precision_are_loaded(single):
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(single / SINGLE).items()}
    save_file(tensors, single / SINGLE, metadata={"format": "pt"})
    weight = layers_of(single)["norm"].build().part.weight
    assert torch.equal(weight.to(torch.bfloat16), tensors["model.norm.weight"])


# --- which folder


def test_the_folder_with_weights_is_found(single):
    assert weights_folder(single) == weights_folder(str(single)) == single


def test_the_folder_of_shards_is_found(sharded):
    assert weights_folder(sharded) == sharded


def test_models_without_a_folder_have_no_weights(single):
    assert weights_folder(AutoConfig.from_pretrained(single)) is None
    assert weights_folder({"model_type": "llama"}) is None
    assert weights_folder(str(single / "config.json")) is None


def test_a_folder_with_a_config_alone_begins_from_new_weights_and_says_so(single, caplog):
    (single / SINGLE).unlink()
    with caplog.at_level("WARNING", logger="recparallel"):
        assert weights_folder(single) is None
    assert f"{single} has a config but no weights" in caplog.text
    torch.manual_seed(0)
    assert layers_of(single)["blocks.0"].build().block.mlp.up_proj.weight.std() > 0


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_weights_in_another_format_are_refused_instead_of_ignored(single, name):
    (single / SINGLE).rename(single / name)
    with pytest.raises(CheckpointError) as raised:
        build_recommender(single, num_items=5)
    assert str(raised.value).startswith(f"{single} has its weights in {name}")
    assert "safetensors" in str(raised.value)
    build_recommender(single, num_items=5, pretrained=False)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ConfigError) as raised:
        build_recommender(tmp_path, num_items=5)
    assert str(raised.value) == f"{tmp_path} is a folder without config.json; expected a Hugging Face model folder"


def test_a_path_to_nothing_is_refused_with_the_families(tmp_path):
    with pytest.raises(UnknownNameError) as raised:
        build_recommender(str(tmp_path / "absent"), num_items=5)
    assert f"unknown model '{tmp_path / 'absent'}'" in str(raised.value)
    assert "gpt2, gpt_neox, llama, mistral" in str(raised.value)
