import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recparallel.plan import Cluster, Device, LayerCost, LinkCost, ParallelPlan, Partition, Profile

seconds = st.floats(0, 1e6, allow_nan=False)
rates = st.floats(1e-9, 1e15)
counts = st.integers(1, 10**9)
byte_counts = st.integers(0, 2**70)  # larger than any machine integer: JSON has no limit and neither has Python
names = st.text(max_size=8)

layer_costs = st.builds(
    LayerCost,
    name=names,
    forward_seconds=seconds,
    backward_seconds=seconds,
    num_parameters=byte_counts,
    parameter_bytes=byte_counts,
    activation_bytes=byte_counts,
    boundary_bytes=byte_counts,
)
link_costs = st.builds(LinkCost, bytes_per_second=rates, latency_seconds=seconds)
devices = st.builds(Device, name=names, relative_speed=rates, memory_bytes=st.none() | byte_counts)
profiles = st.builds(
    Profile,
    layers=st.lists(layer_costs, min_size=1, max_size=3, unique_by=lambda layer: layer.name).map(tuple),
    micro_batch=counts,
    sequence_length=counts,
    dtype=names,
    links=st.lists(link_costs, max_size=2).map(tuple),
    devices=st.lists(devices, max_size=2).map(tuple),
)
clusters = st.builds(
    Cluster,
    devices=st.lists(devices, min_size=1, max_size=3).map(tuple),
    ranks_per_node=counts,
    intra_node=st.none() | link_costs,
    inter_node=st.none() | link_costs,
)


@st.composite
def partitions(draw):
    inner = draw(st.lists(st.integers(0, 20), max_size=5).map(sorted))
    bounds = (0, *inner, 20)
    predicted = draw(st.booleans())
    times = draw(st.lists(seconds, min_size=len(bounds) - 1, max_size=len(bounds) - 1)) if predicted else []
    return Partition(bounds=bounds, method=draw(names), stage_seconds=tuple(times))


@st.composite
def plans(draw):
    partition = draw(partitions())
    return ParallelPlan(
        pipeline=partition.num_stages,
        tensor=draw(st.integers(1, 8)),
        data=draw(st.integers(1, 8)),
        partition=partition,
        micro_batch=draw(counts),
        num_micro_batches=draw(counts),
        compression=draw(names),
        data_parallel=draw(names),
        zero_stage=draw(st.integers(0, 3)),
        dtype=draw(names),
    )


words = st.one_of(layer_costs, link_costs, devices, profiles, clusters, partitions(), plans())

LAYER = LayerCost(name="a", forward_seconds=1, backward_seconds=2, num_parameters=3, parameter_bytes=12)
EXAMPLES = [
    LAYER,
    LinkCost(bytes_per_second=1e9),
    Device(),
    Profile(layers=(LAYER,), micro_batch=1, sequence_length=2),
    Cluster(devices=(Device(),), ranks_per_node=1),
    Partition(bounds=(0, 2, 3), method="profile", stage_seconds=(1.0, 2.0)),
    ParallelPlan(partition=Partition(bounds=(0, 3), method="uniform"), micro_batch=4, num_micro_batches=8),
]
each_word = pytest.mark.parametrize("word", EXAMPLES, ids=lambda word: type(word).__name__)


@settings(deadline=None)
@given(word=words)
def test_json_both_ways_gives_the_same_word(word):
    text = word.model_dump_json()
    assert type(word).model_validate_json(text) == word
    # Strict JSON: other readers than Python's know neither NaN nor Infinity.
    assert type(word).model_validate(json.loads(text, parse_constant=pytest.fail)) == word


@each_word
def test_a_word_is_frozen(word):
    for name in type(word).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(word, name, getattr(word, name))
    assert hash(word) == hash(word.model_copy())


@each_word
def test_an_unknown_key_is_rejected_by_name(word):
    with pytest.raises(ValidationError, match=r"latency_sec\n.*[Ee]xtra"):
        type(word).model_validate({**word.model_dump(), "latency_sec": 1})


@each_word
def test_the_schema_documents_every_field(word):
    schema = type(word).model_json_schema()
    assert set(schema["properties"]) == set(type(word).model_fields)
    assert schema["additionalProperties"] is False


@each_word
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0], ids=["nan", "inf", "negative"])
def test_no_number_may_be_negative_or_not_finite(word, wrong):
    numbers = [key for key, value in word.model_dump().items() if isinstance(value, (int, float))]
    for key in numbers:
        with pytest.raises(ValidationError, match=key):
            type(word).model_validate({**word.model_dump(), key: wrong})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1e-9])
def test_no_predicted_stage_time_may_be_negative_or_not_finite(wrong):
    with pytest.raises(ValidationError, match="stage_seconds"):
        Partition(bounds=(0, 1, 2), method="profile", stage_seconds=(1.0, wrong))


@pytest.mark.parametrize("key", ["bytes_per_second", "relative_speed"])
def test_a_rate_of_zero_is_rejected(key):
    word = LinkCost if key == "bytes_per_second" else Device
    with pytest.raises(ValidationError, match="greater than 0"):
        word(**{key: 0.0})


@pytest.mark.parametrize("key", ["micro_batch", "sequence_length"])
def test_a_profile_was_measured_with_at_least_one_position(key):
    with pytest.raises(ValidationError, match=key):
        Profile(**{"layers": (LAYER,), "micro_batch": 1, "sequence_length": 1, key: 0})


def test_a_profile_and_a_cluster_hold_something():
    with pytest.raises(ValidationError, match="layers"):
        Profile(layers=(), micro_batch=1, sequence_length=1)
    with pytest.raises(ValidationError, match="devices"):
        Cluster(devices=(), ranks_per_node=1)


def test_seconds_of_a_layer_are_forward_plus_backward():
    assert LAYER.seconds == 3.0


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ((1, 3), "start at 0"),
        ((0, 3, 2), "never decrease"),
        ((0, -1), "never decrease"),
        ((0,), "at least 2"),
        ((), "at least 2"),
    ],
)
def test_bounds_that_are_no_cut_are_rejected_with_what_was_given(bounds, reason):
    with pytest.raises(ValidationError, match=reason) as raised:
        Partition(bounds=bounds, method="profile")
    assert str(list(bounds)) in str(raised.value) or str(bounds) in str(raised.value)


def test_stage_times_must_be_one_per_stage():
    with pytest.raises(ValidationError, match="2 stages, but stage_seconds has 1 entries"):
        Partition(bounds=(0, 1, 2), method="profile", stage_seconds=(1.0,))


@settings(deadline=None)
@given(partition=partitions())
def test_stage_of_names_the_one_stage_that_holds_a_layer(partition):
    assert partition.num_layers == 20
    for layer in range(partition.num_layers):
        stage = partition.stage_of(layer)
        assert layer in range(partition.bounds[stage], partition.bounds[stage + 1])
        assert 0 <= stage < partition.num_stages
    for outside in (-1, partition.num_layers):
        with pytest.raises(ValueError, match=rf"layer {outside} is outside 0…19"):
            partition.stage_of(outside)


@settings(deadline=None)
@given(plan=plans())
def test_a_plan_multiplies_out(plan):
    assert plan.world_size == plan.pipeline * plan.tensor * plan.data
    assert plan.global_batch == plan.micro_batch * plan.num_micro_batches * plan.data


def test_a_plan_whose_partition_has_other_stages_is_rejected():
    two = Partition(bounds=(0, 1, 2), method="profile")
    with pytest.raises(ValidationError, match="pipeline is 3, but the partition has 2 stages"):
        ParallelPlan(pipeline=3, partition=two, micro_batch=1, num_micro_batches=1)
    with pytest.raises(ValidationError, match="pipeline is 1, but the partition has 2 stages"):
        ParallelPlan(partition=two, micro_batch=1, num_micro_batches=1)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("tensor", 0), ("data", 0), ("micro_batch", 0), ("num_micro_batches", 0), ("zero_stage", 4), ("zero_stage", -1)],
)
def test_a_plan_out_of_range_is_rejected_by_key(key, wrong):
    plan = EXAMPLES[-1].model_dump()
    with pytest.raises(ValidationError, match=key):
        ParallelPlan.model_validate({**plan, key: wrong})


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        ("recparallel, recparallel.plan, recparallel.config_checks, recparallel.events", set()),
        ("recparallel.partitioning.bottleneck, recparallel.partitioning.step_time", {"numpy"}),
    ],
)
def test_the_words_the_config_and_the_solvers_are_read_without_torch(modules, allowed):
    heavy = {"torch", "deepspeed", "transformers", "datasets", "wandb", "numpy"} - allowed
    code = f"import sys, {modules}; sys.exit(', '.join(sorted({heavy} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
