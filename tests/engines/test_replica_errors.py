"""What replicas are refused, and what ends them."""

import time
from dataclasses import replace

import pytest
from distributed import RankError
from launching import free_port
from replicas_training import PLAIN, Apart, launched, train_own
from training import deepspeed_config, make_engine

from recparallel.config import parse_config
from recparallel.config_checks import check_together
from recparallel.engines.replica_binding import make_mode
from recparallel.errors import ConfigError, ReplicaError

LOCAL = {"mode": "local_sgd", "local_steps": 2}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mode": "locl_sgd"}, "unknown data-parallel mode 'locl_sgd'.*Did you mean 'local_sgd'"),
        ({"mode": "synchronous", "replicas": 2}, "replicas beside mode 'synchronous'"),
        ({"mode": "local_sgd", "replicas": 0}, "data_parallel.replicas.*greater than or equal to 1"),
        ({"mode": "local_sgd", "timeout_s": 0}, "data_parallel.timeout_s"),
        ({"mode": "local_sgd", "compression": "int9"}, "unknown codec 'int9'"),
        ({"mode": "synchronous", "gate": {}}, "gate beside mode 'synchronous'"),
        ({"mode": "local_sgd", "gate": {"margin": 0}}, "gate.margin.*greater than 0"),
        ({"mode": "local_sgd", "gate": {"fall_back": {"mode": "diloko"}}}, "unknown data-parallel mode 'diloko'"),
        ({"mode": "local_sgd", "gate": {"fall_back": {"mode": "synchronous"}}}, "local_steps 1 averages behind every"),
        (
            {"mode": "local_sgd", "gate": {"fall_back": {"mode": "diloco", "replicas": 2}}},
            "replicas stay what they are",
        ),
    ],
)
def test_a_section_that_cannot_be(section, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"recparallel": {"data_parallel": section}})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mode": "local_sgd", "local_steps": 0}, "local_steps: rounds are at least 1 step long"),
        ({"mode": "local_sgd", "local_steps": True}, "local_steps is a number of steps or"),
        ({"mode": "local_sgd", "local_steps": "8"}, "local_steps is a number of steps or"),
        ({"mode": "local_sgd", "local_steps": [[1, 4]]}, "goes up from step 0"),
        ({"mode": "local_sgd", "local_steps": [[0, 1], [0, 4]]}, "goes up from step 0"),
        ({"mode": "local_sgd", "local_step": 8}, "does not take {'local_step': 8}"),
        ({"mode": "delayed", "delay": -1}, "delay must be a whole number of at least 0"),
        ({"mode": "delayed", "delay": 1.5}, "delay must be a whole number of at least 0, got 1.5"),
        ({"mode": "diloco", "fragments": 1.5}, "fragments must be a whole number of at least 1, got 1.5"),
        ({"mode": "diloco", "outer_learning_rate": float("inf")}, "outer_learning_rate must be a number"),
        ({"mode": "delayed", "delay": 3, "local_steps": 2}, "delay can be at most 2"),
        ({"mode": "diloco", "outer_learning_rate": -0.1}, "outer_learning_rate must be a number of at least 0"),
        ({"mode": "diloco", "outer_learning_rate": "0.7"}, "outer_learning_rate must be a number"),
        ({"mode": "diloco", "outer_momentum": 1.0}, "outer_momentum must be a number of at least 0 and below 1"),
        ({"mode": "diloco", "local_steps": 4, "fragments": 5}, "at most local_steps"),
        ({"mode": "bounded_staleness", "staleness": -1}, "staleness must be a whole number of at least 0, got -1"),
        ({"mode": "bounded_staleness", "local_steps": 0}, "local_steps must be a whole number of at least 1, got 0"),
        ({"mode": "bounded_staleness", "discount": -0.5}, "discount must be a number of at least 0"),
        ({"mode": "bounded_staleness", "momentum_every": 0}, "momentum_every must be a whole number of at least 1"),
        (
            {"mode": "bounded_staleness", "outer_momentum": 1},
            "outer_momentum must be a number of at least 0 and below 1",
        ),
        ({"mode": "bounded_staleness", "match_speed": 2}, "match_speed is true or false, got 2"),
        ({"mode": "diloco", "local_steps": 4, "overlap": 5}, "at most local_steps"),
    ],
)
def test_an_option_out_of_range(section, message):
    parsed = parse_config({"recparallel": {"data_parallel": section}})
    with pytest.raises(ConfigError, match=message):
        make_mode(parsed.data_parallel, replicas=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_parallel": {**LOCAL, "replicas": 3}}, r"replicas must be one of \[1, 2, 4\]"),
        ({"lazy_rows": True}, "lazy_rows"),
        ({"partition": {"method": "adaptive"}}, "replicas would be cut differently"),
        ({"fp16": {"enabled": True}}, "hides its weights"),
        (
            {"data_parallel": {**LOCAL, "compression": {"codec": "int8", "bucket_size": 9}}},
            "compression.bucket_size is not",
        ),
        (
            {"data_parallel": {**LOCAL, "compression": {"codec": "int8", "aggregation": "hierarchical"}}},
            "'hierarchical' is not",
        ),
        (
            {"data_parallel": {"mode": "diloco", "local_steps": 4, "fragments": 2, "compression": "torch_powersgd"}},
            "fragments have the same numbers",
        ),
        ({"tensor": 2}, r"does not run with recparallel\.tensor yet"),
        ({"stages": 2, "spread_head": True}, r"does not run with recparallel\.spread_head yet"),
    ],
)
def test_what_does_not_go_together(changes, message):
    config = deepspeed_config(PLAIN, 4)
    config["optimizer"] = {"type": "AdamW", "params": {}}
    config["gradient_accumulation_steps"] = 1
    config |= {key: value for key, value in changes.items() if key == "fp16"}
    config["recparallel"] |= {"data_parallel": LOCAL, **{key: value for key, value in changes.items() if key != "fp16"}}
    with pytest.raises(ConfigError, match=message):
        check_together(config, parse_config(config), world_size=4)


def test_a_world_that_exists_cannot_be_divided(pools):
    run = replace(PLAIN, deepspeed={"recparallel": {"data_parallel": LOCAL}})
    with pytest.raises(RankError, match=r"torch\.distributed is initialized already"):
        pools[2].run(make_engine, run=run)


def test_a_replica_that_does_not_come_is_an_error_in_time(pools):
    apart = Apart(PLAIN, {**LOCAL, "timeout_s": 4.0}, port=free_port())
    seconds = pools[2].run(wait_for_the_second, apart=apart)
    assert seconds[0] < 30


def test_replicas_that_are_not_alike_are_refused(pools):
    apart = Apart(PLAIN, {**LOCAL, "timeout_s": 20.0}, port=free_port())
    told = pools[2].run(begin_with_others, apart=apart)
    assert all("replica 1 is not like replica 0" in text for text in told)


def test_a_divergence_is_named(pools):
    apart = Apart(PLAIN, LOCAL, port=free_port())
    told = pools[2].run(train_until_nothing_is_finite, apart=apart)
    assert all("is not finite: replicas have diverged" in text for text in told)


def wait_for_the_second(apart: Apart) -> float:
    with launched(apart) as engine:
        if engine.recparallel.replicas.world.number == 1:
            time.sleep(8)  # alive, and hung
            return 0.0
        start = time.perf_counter()
        with pytest.raises(ReplicaError, match="has not come within 4 s"):
            train_own(engine, apart.run)
        return time.perf_counter() - start


def begin_with_others(apart: Apart) -> str:
    import os

    other = {**LOCAL, "timeout_s": 20.0, "local_steps": 2 + int(os.environ["RANK"])}
    with pytest.raises(ReplicaError) as raised, launched(replace(apart, mode=other)):
        pass
    return str(raised.value)


def train_until_nothing_is_finite(apart: Apart) -> str:
    import torch

    with launched(apart) as engine:
        next(engine.module.parameters()).data.fill_(torch.inf)
        with pytest.raises(ReplicaError) as raised:
            train_own(engine, apart.run)
        return str(raised.value)
