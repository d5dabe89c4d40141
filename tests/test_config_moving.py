"""Live rebalancing, dynamic lengths and recomputation in the config: what is accepted, and what is refused at once."""

import pytest

from recparallel.config import parse_config
from recparallel.config_checks import check_together
from recparallel.errors import ConfigError


def section(**own):
    return {"train_micro_batch_size_per_gpu": 2, "recparallel": {"stages": 2, **own}}


def check(config):
    check_together(config, parse_config(config), world_size=2)


ADAPTIVE = {"partition": {"method": "adaptive"}}


def test_the_defaults_are_those_of_the_guide():
    rebalance = parse_config(section(**ADAPTIVE)).partition.rebalance
    assert rebalance.model_dump() == {"every": 5, "horizon": 500, "min_gain": 0.05, "tolerance": 0.15}
    assert parse_config(section()).lengths == "fixed"
    assert parse_config(section()).partition.recompute == "when_needed"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("every", 0),
        ("every", 2.5),
        ("horizon", 0),
        ("min_gain", 0),
        ("min_gain", 1),
        ("tolerance", 0),
        ("tolerance", 1.5),
        ("tolerance", float("nan")),
    ],
)
def test_numbers_out_of_range_are_named(key, value):
    with pytest.raises(ConfigError, match=rf"recparallel\.partition\.rebalance\.{key}: .*\(given {value}\)"):
        parse_config(section(partition={"method": "adaptive", "rebalance": {key: value}}))


def test_an_unknown_key_is_named_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"recparallel\.partition\.rebalance\.horizont: unknown key .* Did you mean 'horizon'"
    ):
        parse_config(section(partition={"method": "adaptive", "rebalance": {"horizont": 5}}))


def test_rebalance_goes_with_adaptive_alone():
    with pytest.raises(ConfigError, match="rebalance beside method 'simulated', which never moves layers"):
        parse_config(section(partition={"method": "simulated", "rebalance": {"every": 5}}))


@pytest.mark.parametrize(
    ("own", "deepspeed", "said"),
    [
        ({"spread_head": True}, {}, "shares of the head cannot move"),
        ({"compression": {"codec": "torch_powersgd"}}, {}, "use top_k"),
        ({}, {"fp16": {"enabled": True}}, "use stage 1, or bf16"),
        ({}, {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer"),
    ],
    ids=["spread head", "powersgd", "fp16 without ZeRO", "offloaded optimizer"],
)
def test_what_cannot_move_is_refused(own, deepspeed, said):
    with pytest.raises(ConfigError, match=rf"recparallel\.partition\.method 'adaptive' .*{said}"):
        check({**section(**ADAPTIVE, **own), **deepspeed})
    check({**section(**own), **deepspeed})


@pytest.mark.parametrize(
    ("own", "deepspeed"),
    [
        ({}, {}),
        ({"tensor": 1, "compression": {"codec": "top_k"}}, {}),
        ({}, {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}),
        ({}, {"fp16": {"enabled": True}, "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}}}),
        ({"lengths": "dynamic"}, {}),
    ],
)
def test_what_can_move_is_accepted(own, deepspeed):
    check({**section(**ADAPTIVE, **own), **deepspeed})


def test_packed_rows_and_deepspeeds_recomputation_are_refused_together():
    config = {**section(lengths="packed"), "pipeline": {"activation_checkpoint_interval": 1}}
    with pytest.raises(ConfigError, match="activation_checkpoint_interval 1: DeepSpeed's recomputation does not know"):
        check(config)
    check(section(lengths="packed"))


def test_dynamic_lengths_need_a_schedule_that_knows_shapes_ahead():
    with pytest.raises(ConfigError, match=r"recparallel\.lengths is 'dynamic' with recparallel\.schedule '1f1b'"):
        check(section(lengths="dynamic", schedule="1f1b"))
    check(section(lengths="dynamic"))
