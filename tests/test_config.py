import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel import registry
from recparallel.config import (
    CompressionConfig,
    PartitionConfig,
    RecParallelConfig,
    fill_auto,
    parse_config,
    read_deepspeed_config,
)
from recparallel.config_checks import check_together
from recparallel.errors import ConfigError, UnknownNameError

RECIPES = sorted((Path(__file__).parent.parent / "recipes" / "configs").glob("*.json"))


def parse(section):
    return parse_config({"recparallel": section})


def message_of(call, *args, **kwargs):
    with pytest.raises(ConfigError) as raised:
        call(*args, **kwargs)
    return str(raised.value)


# --- the section alone


def test_no_section_means_defaults():
    assert parse_config({}) == RecParallelConfig() == parse({})
    assert RecParallelConfig().compression is None


def test_a_full_section_is_taken_over():
    config = parse(
        {
            "stages": 3,
            "seed": 7,
            "partition": {"method": "profile", "repeats": 5, "warmup": 0},
            "compression": {"codec": "top_k", "error_feedback": False, "ratio": 0.25},
        }
    )
    assert (config.stages, config.seed) == (3, 7)
    assert config.partition == PartitionConfig(method="profile", repeats=5, warmup=0)
    assert config.partition.measured
    assert (config.compression.codec, config.compression.error_feedback) == ("top_k", False)
    assert config.compression.options == {"ratio": 0.25}


UNKNOWN_KEYS = [
    ({"stage": 2}, "recparallel.stage", 2, "stages", RecParallelConfig),
    ({"partitions": {}}, "recparallel.partitions", {}, "partition", RecParallelConfig),
    ({"partition": {"metod": "profile"}}, "recparallel.partition.metod", "profile", "method", PartitionConfig),
    ({"partition": {"repeat": 3}}, "recparallel.partition.repeat", 3, "repeats", PartitionConfig),
]


@pytest.mark.parametrize(("section", "key", "given_value", "near", "model"), UNKNOWN_KEYS)
def test_an_unknown_key_is_named_with_the_allowed_ones_and_the_nearest(section, key, given_value, near, model):
    message = message_of(parse, section)
    assert message.startswith(f"{key}: unknown key (given {given_value!r})")
    assert f"allowed here: {', '.join(sorted(model.model_fields))}." in message
    assert message.endswith(f"Did you mean {near!r}?")


def test_a_key_without_a_near_match_gets_no_guess():
    message = message_of(parse, {"zzz": 1})
    assert "recparallel.zzz: unknown key (given 1)" in message
    assert "Did you mean" not in message


def test_every_wrong_key_gets_a_line_of_its_own():
    message = message_of(parse, {"stages": 0, "partition": {"repeats": 0, "metod": "x"}, "seed": -1})
    lines = message.splitlines()
    assert {line.split(":")[0] for line in lines} == {
        "recparallel.stages",
        "recparallel.seed",
        "recparallel.partition.repeats",
        "recparallel.partition.metod",
    }
    assert len(lines) == 4


UNKNOWN_NAMES = [
    (
        {"partition": {"method": "profil"}},
        "recparallel.partition.method",
        "profil",
        "profile",
        [*registry.PARTITIONERS, "parameters", "uniform", "type:REGEX"],
    ),
    ({"partition": {"method": "unifrom"}}, "recparallel.partition.method", "unifrom", "uniform", ["uniform"]),
    ({"compression": {"codec": "topk"}}, "recparallel.compression.codec", "topk", "top_k", registry.CODECS),
]


@pytest.mark.parametrize(("section", "key", "name", "near", "known"), UNKNOWN_NAMES)
def test_an_unknown_name_is_named_with_the_known_ones_and_the_nearest(section, key, name, near, known):
    message = message_of(parse, section)
    assert message.startswith(f"{key}: unknown")
    assert f"{name!r}" in message
    assert f"Did you mean {near!r}?" in message
    assert f"(given {name!r})" in message
    listed = message.partition("known are: ")[2].partition(".")[0].split(", ")
    assert set(known) <= set(listed)


WRONG_VALUES = [
    ({"stages": 0}, "recparallel.stages", 0, "greater than or equal to 1"),
    ({"stages": 2.5}, "recparallel.stages", 2.5, "integer"),
    ({"stages": None}, "recparallel.stages", None, "integer"),
    ({"seed": -1}, "recparallel.seed", -1, "greater than or equal to 0"),
    ({"partition": "profile"}, "recparallel.partition", "profile", "dictionary"),
    ({"partition": {"repeats": 0}}, "recparallel.partition.repeats", 0, "greater than or equal to 1"),
    ({"partition": {"warmup": -1}}, "recparallel.partition.warmup", -1, "greater than or equal to 0"),
    ({"partition": {"method": 3}}, "recparallel.partition.method", 3, "string"),
    ({"compression": ["top_k"]}, "recparallel.compression", ["top_k"], "dictionary"),
    ({"compression": {"codec": ["top_k"]}}, "recparallel.compression.codec", ["top_k"], "string"),
    ({"compression": {"error_feedback": "maybe"}}, "recparallel.compression.error_feedback", "maybe", "boolean"),
]


@pytest.mark.parametrize(("section", "key", "value", "allowed"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_what_is_allowed(section, key, value, allowed):
    message = message_of(parse, section)
    assert message.startswith(f"{key}: ")
    assert allowed in message
    assert message.endswith(f"(given {value!r})")


@pytest.mark.parametrize("section", [None, [], "stages", 2])
def test_the_section_must_be_an_object(section):
    assert message_of(parse, section) == f'"recparallel" must be a JSON object, got {section!r}'


@settings(deadline=None)
@given(method=st.sampled_from(["profile", "parameters", "Uniform", "type:DecoderBlock", "TYPE:block|norm"]))
def test_every_partition_method_is_accepted_and_only_ours_are_measured(method):
    config = parse({"partition": {"method": method}})
    assert config.partition.method == method
    assert config.partition.measured == (method in registry.partitioners)


@settings(deadline=None)
@given(codec=st.sampled_from(sorted(registry.CODECS)), options=st.dictionaries(st.sampled_from("abc"), st.integers()))
def test_other_keys_beside_the_codec_are_its_options(codec, options):
    assert parse({"compression": {"codec": codec, **options}}).compression.options == options


@settings(deadline=None)
@given(
    key=st.text(min_size=1, max_size=12).filter(lambda key: key not in RecParallelConfig.model_fields),
    value=st.none() | st.integers() | st.text(max_size=5),
)
def test_no_unknown_key_gets_through(key, value):
    assert f"recparallel.{key}: unknown key (given {value!r})" in message_of(parse, {key: value})


def test_the_config_is_frozen():
    for config in (RecParallelConfig(), PartitionConfig(), CompressionConfig()):
        for name in type(config).model_fields:
            with pytest.raises(ValueError, match="frozen"):
                setattr(config, name, getattr(config, name))


# --- the file


def test_a_dict_is_used_as_it_is():
    config = {"train_batch_size": 3}
    assert read_deepspeed_config(config) is config


def test_a_file_is_read(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 64}))
    assert read_deepspeed_config(path) == read_deepspeed_config(str(path)) == {"train_batch_size": 64}


def test_a_missing_file_is_named(tmp_path):
    message = message_of(read_deepspeed_config, tmp_path / "ds.json")
    assert str(tmp_path / "ds.json") in message
    assert "expected a JSON file" in message


def test_a_folder_is_not_a_config(tmp_path):
    assert str(tmp_path) in message_of(read_deepspeed_config, tmp_path)


def test_invalid_json_is_named_with_line_and_column(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{\n  "train_batch_size": 64,\n  "seed" 3\n}\n')
    assert message_of(read_deepspeed_config, path).startswith(f"{path}:3:10: not valid JSON: Expecting ':'")


@pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ("3", "int"), ("null", "NoneType")])
def test_json_that_is_no_object_is_refused(tmp_path, content, kind):
    path = tmp_path / "ds.json"
    path.write_text(content)
    assert message_of(read_deepspeed_config, path) == f"{path} holds a {kind}, expected a JSON object"


# --- "auto"


def test_auto_is_filled_at_every_depth_by_key():
    config = {"lr": "auto", "optimizer": {"params": {"lr": "auto", "betas": [0.9, 0.99]}}, "name": "automatic"}
    assert fill_auto(config, {"lr": 0.1}) == {
        "lr": 0.1,
        "optimizer": {"params": {"lr": 0.1, "betas": [0.9, 0.99]}},
        "name": "automatic",
    }
    assert config["lr"] == "auto"  # the given config stays as it was
    assert config["optimizer"]["params"]["lr"] == "auto"


def test_auto_in_our_own_section_is_left_alone():
    config = {"recparallel": {"compression": "auto"}}
    assert fill_auto(config, {}) == config


def test_auto_without_a_value_is_named_by_its_path():
    message = message_of(fill_auto, {"optimizer": {"params": {"eps": "auto"}}}, {"lr": 0.1, "betas": 1})
    assert message == 'optimizer.params.eps is "auto", but only these can be: betas, lr'


def test_auto_inside_a_list_is_filled_or_named():
    assert fill_auto({"groups": [{"lr": "auto"}, 1]}, {"lr": 0.1}) == {"groups": [{"lr": 0.1}, 1]}
    message = message_of(fill_auto, {"params": {"betas": [0.9, "auto"]}}, {"lr": 0.1})
    assert message == 'params.betas[1] is "auto", but only these can be: lr'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(config=st.dictionaries(st.text(max_size=4), json_values, max_size=4))
def test_a_config_without_auto_comes_back_unchanged(config):
    if "auto" not in json.dumps(config):
        assert fill_auto(config, {}) == config


# --- the recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_config_can_run(path):
    config = read_deepspeed_config(path)
    section = parse_config(config)
    replicas = 2 if path.stem in ("data_2", "data_2_auto", "data_2_top_k", "hybrid") else 1
    check_together(config, section, world_size=section.stages * section.tensor * replicas, num_layers=4)
    filled = fill_auto(config, dict.fromkeys(("lr", "weight_decay", "total_num_steps", "warmup_num_steps"), 1))
    assert '"auto"' not in json.dumps({key: value for key, value in filled.items() if key != "recparallel"})


def test_the_recipes_have_configs():
    assert {path.stem for path in RECIPES} >= {"single", "pipeline_2", "data_2", "hybrid", "hybrid_tensor"}


def test_unknown_name_errors_are_config_errors_and_value_errors():
    error = UnknownNameError("codec", "topk", ["top_k", "none"], where="here")
    assert isinstance(error, ConfigError)
    assert isinstance(error, ValueError)
    assert error.known == ["none", "top_k"]
    assert str(error) == "unknown codec 'topk' (here); known are: none, top_k. Did you mean 'top_k'?"


def test_an_unknown_name_error_travels_between_ranks():
    error = UnknownNameError("codec", "topk", ["top_k", "none"], where="here")
    received = pickle.loads(pickle.dumps(error))
    assert type(received) is UnknownNameError
    assert (str(received), received.known) == (str(error), error.known)


@pytest.mark.parametrize("method", ["uniform", "parameters", "type:DecoderBlock"])
@pytest.mark.parametrize("key", ["profile", "memory_gib"])
def test_keys_that_a_method_would_ignore_are_refused(method, key):
    value = "profile.json" if key == "profile" else 1.5
    with pytest.raises(
        ConfigError, match=f"{key} beside method '{method}', which measures nothing; allowed with adaptive, profile"
    ):
        parse_config({"recparallel": {"partition": {"method": method, key: value}}})


@pytest.mark.parametrize("memory", [0, -1, float("nan"), "much"])
def test_memory_limits_out_of_range_are_refused(memory):
    with pytest.raises(ConfigError, match=r"recparallel\.partition\.memory_gib"):
        parse_config({"recparallel": {"partition": {"memory_gib": memory}}})
