"""The ``"recparallel"`` section and DeepSpeed's own settings together: what goes, and what is refused with its remedy."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.compression.wire import WIRE_FORMATS
from recparallel.config import WireFormatName, parse_config
from recparallel.config_checks import check_compression, check_together, precision, zero_stage
from recparallel.errors import ConfigError

BATCH = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}


def check(config, *, world_size=4, num_layers=None):
    check_together(config, parse_config(config), world_size=world_size, num_layers=num_layers)


def message_of(call, *args, **kwargs):
    with pytest.raises(ConfigError) as raised:
        call(*args, **kwargs)
    return str(raised.value)


@settings(deadline=None)
@given(world_size=st.integers(1, 24), stages=st.integers(1, 30))
def test_stages_must_divide_the_world_size(world_size, stages):
    config = {"train_micro_batch_size_per_gpu": 1, "recparallel": {"stages": stages}}
    divisors = [d for d in range(1, world_size + 1) if world_size % d == 0]
    if stages in divisors:
        check(config, world_size=world_size)
    else:
        message = message_of(check, config, world_size=world_size)
        assert f"recparallel.stages is {stages}, but the launch has {world_size} processes" in message
        assert message.endswith(f"stages must be one of {divisors}")


@settings(deadline=None)
@given(stages=st.integers(1, 8), num_layers=st.integers(1, 8))
def test_every_stage_needs_a_layer(stages, num_layers):
    config = {"train_micro_batch_size_per_gpu": 1, "recparallel": {"stages": stages}}
    if stages <= num_layers:
        check(config, world_size=stages, num_layers=num_layers)
    else:
        message = message_of(check, config, world_size=stages, num_layers=num_layers)
        assert f"recparallel.stages is {stages}, but the model has only {num_layers} layers" in message
        assert f"at most {num_layers}" in message


sizes = st.none() | st.integers(1, 12)


@settings(deadline=None)
@given(total=st.none() | st.integers(1, 48), micro=sizes, accumulation=sizes, replicas=st.sampled_from([1, 2, 3, 4]))
def test_batch_sizes_must_multiply_out(total, micro, accumulation, replicas):
    values = {
        "train_batch_size": total,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }
    config = {key: value for key, value in values.items() if value is not None}
    rest = (micro or 1) * (accumulation or 1) * replicas
    if total is None:
        fits = micro is not None
    elif micro and accumulation:
        fits = total == rest
    else:
        fits = total % rest == 0
    if fits:
        check(config, world_size=replicas)
        return
    message = message_of(check, config, world_size=replicas)
    if total is None:
        assert "sets neither train_batch_size nor train_micro_batch_size_per_gpu" in message
        return
    assert f"{replicas} replicas" in message
    for key, value in config.items():
        assert f"{key} is {value}" in message or f"{key} {value}" in message


def test_replicas_are_what_the_stages_leave():
    fitting = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1}
    check({**fitting, "recparallel": {"stages": 2}}, world_size=4)
    message = message_of(check, {**fitting, "recparallel": {"stages": 4}}, world_size=4)
    assert "8 × gradient_accumulation_steps 1 × 1 replicas = 8; they must be equal" in message


@pytest.mark.parametrize("key", ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"])
@pytest.mark.parametrize("value", [0, -8, "auto", "64", 2.0, True])
def test_a_batch_size_is_a_positive_integer(key, value):
    message = message_of(check, {**BATCH, key: value})
    assert message == f"{key} must be an integer of at least 1, got {value!r}"


@pytest.mark.parametrize("stage", [4, -1, "auto", "1", True, None])
def test_a_zero_stage_is_one_of_four(stage):
    message = message_of(check, {**BATCH, "zero_optimization": {"stage": stage}})
    assert message == f"zero_optimization.stage must be 0, 1, 2 or 3, got {stage!r}"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 0),
        ({"zero_optimization": None}, 0),
        ({"zero_optimization": {}}, 0),
        ({"zero_optimization": {"stage": 3}}, 3),
    ],
)
def test_the_zero_stage_is_0_unless_one_is_named(config, expected):
    assert zero_stage(config) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "float32"),
        ({"bf16": {"enabled": True}}, "bfloat16"),
        ({"fp16": {"enabled": True}}, "float16"),
        ({"bf16": {"enabled": False}, "fp16": None}, "float32"),
        ({"bf16": {}, "fp16": {"enabled": True}}, "float16"),
    ],
)
def test_the_precision_is_full_unless_one_is_enabled(config, expected):
    assert precision(config) == expected


@pytest.mark.parametrize("key", ["bf16", "fp16"])
@pytest.mark.parametrize("enabled", ["auto", 1, None])
def test_a_precision_is_enabled_or_not(key, enabled):
    message = message_of(precision, {key: {"enabled": enabled}})
    assert message == f"{key}.enabled must be true or false, got {enabled!r}"


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("codec", [None, "top_k"])
def test_a_pipeline_goes_with_zero_0_and_1_also_one_of_a_single_stage(zero, stages, codec):
    section = {"stages": stages, **({"compression": {"codec": codec}} if codec else {})}
    config = {**BATCH, "zero_optimization": {"stage": zero}, "recparallel": section}
    if zero <= 1:
        check(config)
        return
    message = message_of(check, config)
    assert f"zero_optimization.stage is {zero}" in message
    assert f"recparallel.stages {stages}" in message
    assert "stage 0 or 1" in message


ADAMW = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}


@pytest.mark.parametrize(
    "config",
    [
        ADAMW,
        {"optimizer": {"type": "Adam"}},
        {**ADAMW, "bf16": {"enabled": True}},
        {**ADAMW, "zero_optimization": {"stage": 1}},
    ],
)
def test_lazy_rows_go_with_adamw(config):
    check({**BATCH, **config, "recparallel": {"lazy_rows": True}})


@pytest.mark.parametrize(
    ("config", "section", "said"),
    [
        ({}, {}, "for AdamW"),
        ({"optimizer": {"type": "SGD", "params": {"lr": 1e-3}}}, {}, "'SGD'"),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, {}, "for AdamW"),
        ({"optimizer": {"type": "AdamW", "params": {"amsgrad": True}}}, {}, "without amsgrad"),
        ({"optimizer": {"type": "AdamW", "params": {"bias_correction": False}}}, {}, "bias correction"),
        ({**ADAMW, "fp16": {"enabled": True}}, {}, "fp16"),
        ({**ADAMW, "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, {}, "offload_optimizer"),
        ({**ADAMW, "torch_autocast": {"enabled": True, "dtype": "float16"}}, {}, "torch_autocast"),
        ({**ADAMW, "torch_autocast": {"enabled": True, "dtype": "torch.float16"}}, {}, "torch_autocast"),
        (ADAMW, {"stages": 2, "spread_head": True}, "spread_head"),
    ],
)
def test_lazy_rows_are_refused_where_rows_could_not_catch_up(config, section, said):
    message = message_of(check, {**BATCH, **config, "recparallel": {**section, "lazy_rows": True}})
    assert "recparallel.lazy_rows" in message
    assert said in message


NOTHING_CROSSES = [
    ({}, {"stages": 1}, "nothing crosses to another stage"),
    ({}, {"schedule": "1f1b"}, "it runs with 'eager_1f1b'"),
    ({"bf16": {"enabled": True}}, {}, "weights in bfloat16"),
    ({"fp16": {"enabled": True}}, {}, "weights in float16"),
]


@pytest.mark.parametrize("name", get_args(WireFormatName))
@pytest.mark.parametrize(("deepspeed", "section", "reason"), [({}, {}, None), *NOTHING_CROSSES])
def test_a_wire_format_is_refused_where_nothing_would_cross_in_it(name, deepspeed, section, reason):
    config = {**BATCH, **deepspeed, "recparallel": {"stages": 2, **section, "wire_format": name}}
    if reason is None or name == "same":
        check(config)
        return
    message = message_of(check, config)
    assert message.startswith(f"recparallel.wire_format is {name!r} with ")
    assert reason in message


def test_wire_formats_are_those_that_there_are():
    assert get_args(WireFormatName) == ("same", *WIRE_FORMATS)
    assert "'same', 'bf16' or 'fp16'" in message_of(parse_config, {"recparallel": {"wire_format": "int8"}})


WITH_CODEC = {**BATCH, "recparallel": {"compression": {"codec": "none"}}}
NOT_WITH_A_CODEC = [
    ({"zero_optimization": {"stage": 1, "overlap_comm": True}}, "zero_optimization.overlap_comm: true", "to false"),
    (
        {"zero_optimization": {"stage": 1, "contiguous_gradients": False}},
        "zero_optimization.contiguous_gradients: true",
        "got false",
    ),
    ({"fp16": {"enabled": True}}, "fp16.enabled", "use stage 1 or 2, or bf16"),
    ({"prescale_gradients": True}, "prescale_gradients", "remove"),
    ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor", "remove"),
    ({"optimizer": {"type": "OneBitAdam"}}, "optimizer.type", "choose one"),
    ({"optimizer": {"type": "OneBitLamb"}}, "optimizer.type", "choose one"),
    ({"optimizer": {"type": "ZeroOneAdam"}}, "optimizer.type", "choose one"),
]


@pytest.mark.parametrize(("changes", "key", "remedy"), NOT_WITH_A_CODEC)
def test_what_does_not_go_with_a_codec_is_refused(changes, key, remedy):
    message = message_of(check, {**WITH_CODEC, **changes})
    assert key in message
    assert "recparallel.compression" in message
    assert remedy in message
    check({**BATCH, **changes})  # and is nobody's business without one


def test_what_goes_with_a_codec_is_accepted():
    check(
        {
            **WITH_CODEC,
            "zero_optimization": {"stage": 1, "overlap_comm": False, "contiguous_gradients": True},
            "bf16": {"enabled": True},
            "prescale_gradients": False,
            "gradient_predivide_factor": 1.0,
            "optimizer": {"type": "AdamW"},
        }
    )


MOMENTUM = {"codec": "top_k", "momentum_correction": {"momentum": 0.9}}
SGD = {"type": "SGD", "params": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("zero", "optimizer", "compression", "said"),
    [
        (1, SGD, {"codec": "int8", "bucket_size": 100}, ["bucket_size is 100", "zero_optimization.reduce_bucket_size"]),
        (2, SGD, MOMENTUM, ["momentum_correction with zero_optimization.stage 2", "use stage 0 or 1"]),
        (0, {"type": "AdamW"}, MOMENTUM, ["optimizer.type 'adamw'", "use SGD with momentum 0"]),
        (0, {"type": "SGD", "params": {"momentum": 0.9}}, MOMENTUM, ["momentum 0.9", "use SGD with momentum 0"]),
    ],
)
def test_what_a_codec_keeps_must_go_with_the_optimizer(zero, optimizer, compression, said):
    config = {**BATCH, "optimizer": optimizer, "zero_optimization": {"stage": zero}}
    config |= {"recparallel": {"compression": compression}}
    message = message_of(check_compression, config, parse_config(config))
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("zero", "compression"), [(0, {**MOMENTUM, "bucket_size": 100}), (1, MOMENTUM), (2, {"codec": "int8"})]
)
def test_what_a_codec_keeps_goes_with_plain_sgd(zero, compression):
    config = {"optimizer": SGD, "zero_optimization": {"stage": zero}, "recparallel": {"compression": compression}}
    check_compression(config, parse_config(config))
