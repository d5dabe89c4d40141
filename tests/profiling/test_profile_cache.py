import json

import pytest
import torch

from recparallel import build_recommender, caches
from recparallel.errors import PartitionError
from recparallel.plan import LayerCost, Profile
from recparallel.profiling import cache

LLAMA = {"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 24, "bos_token_id": None, "eos_token_id": None}
PROFILE = Profile(
    layers=(LayerCost(name="only", forward_seconds=1, backward_seconds=2),), micro_batch=2, sequence_length=6
)


def conditions(*, loss="cross_entropy", shape=(2, 6), dtype=torch.float32, devices=("host: cpu",), **llama):
    recommender = build_recommender({**LLAMA, **llama}, num_items=10, loss=loss)
    return cache.conditions(recommender.layers, recommender.loss_fn, shape=shape, dtype=dtype, devices=devices)


def test_a_profile_comes_back_under_the_same_conditions(tmp_path):
    assert cache.load(conditions(), tmp_path) is None
    cache.save(conditions(), PROFILE, tmp_path)
    assert cache.load(conditions(), tmp_path) == PROFILE


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (4, 6)},
        {"dtype": torch.bfloat16},
        {"devices": ("host: cpu", "host: cpu")},
        {"loss": "sampled_softmax"},
        {"num_hidden_layers": 3},
        {"intermediate_size": 32},
    ],
)
def test_another_model_shape_type_or_machine_is_measured_anew(tmp_path, change):
    cache.save(conditions(), PROFILE, tmp_path)
    assert cache.load(conditions(**change), tmp_path) is None


def test_other_versions_are_measured_anew(tmp_path, monkeypatch):
    cache.save(conditions(), PROFILE, tmp_path)
    monkeypatch.setattr(cache, "version", lambda name: "99")
    assert cache.load(conditions(), tmp_path) is None


@pytest.mark.parametrize("content", ["{", "{}", '{"measured": {}, "profile": {"layers": []}}'])
def test_a_damaged_file_is_refused_with_its_path(tmp_path, content):
    path = cache.save(conditions(), PROFILE, tmp_path)
    path.write_text(content)
    with pytest.raises(PartitionError, match=f"{path.name} cannot be read or is damaged; delete it"):
        cache.load(conditions(), tmp_path)


def test_a_file_of_another_model_under_this_name_is_refused(tmp_path):
    path = cache.save(conditions(), PROFILE, tmp_path)
    stored = json.loads(path.read_text())
    stored["measured"]["shape"] = [9, 9]
    path.write_text(json.dumps(stored))
    with pytest.raises(PartitionError, match="made under other conditions than its name says"):
        cache.load(conditions(), tmp_path)


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(caches.FOLDER, str(tmp_path))
    assert caches.cache_folder("profiles") == tmp_path / "profiles"
