"""The layout is what Megatron-Core's own parser and validation accept, with no layer lost."""

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.errors import PartitionError
from recparallel.partitioning.interleaved import minimize_interleaved
from recparallel.partitioning.megatron_layout import megatron_layout
from recparallel.plan import LayerCost, Partition, Profile, SpreadLayer


def profile_of(num_blocks, *, norm=True, positions=False, seconds=None):
    kinds = ["embedding", *["other"] * positions, *["block"] * num_blocks, *["norm"] * norm, "head"]
    times = seconds or [1] * len(kinds)
    layers = [
        LayerCost(name=f"{kind} {i}", kind=kind, forward_seconds=t, backward_seconds=0)
        for i, (kind, t) in enumerate(zip(kinds, times))
    ]
    return Profile(layers=tuple(layers), micro_batch=1, sequence_length=1)


@st.composite
def partitions(draw):
    num_blocks = draw(st.integers(1, 40))
    profile = profile_of(num_blocks, norm=draw(st.booleans()), positions=draw(st.booleans()))
    n = len(profile.layers)
    stages, virtual = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    inner = draw(st.lists(st.integers(0, n), min_size=stages * virtual - 1, max_size=stages * virtual - 1).map(sorted))
    return profile, Partition(bounds=(0, *inner, n), method="random", virtual=virtual), num_blocks


@settings(max_examples=examples(300))
@given(partitions())
def test_megatron_accepts_every_partition_and_finds_every_block_on_its_stage(instance):
    megatron = pytest.importorskip("megatron.core.transformer.pipeline_parallel_layer_layout")
    from megatron.core.transformer.enums import LayerType

    profile, partition, num_blocks = instance
    parsed = megatron.PipelineParallelLayerLayout(megatron_layout(profile, partition), partition.num_stages)
    parsed.validate_layer_layout(num_layers=num_blocks, mtp_num_layers=None)
    assert parsed.virtual_pipeline_model_parallel_size == partition.virtual
    kinds = {"embedding": LayerType.embedding, "block": LayerType.decoder, "head": LayerType.loss}
    for chunk, (a, b) in enumerate(zip(partition.bounds, partition.bounds[1:])):
        virtual, stage = divmod(chunk, partition.num_stages)
        expected = [kinds[layer.kind] for layer in profile.layers[a:b] if layer.kind in kinds]
        assert parsed.layout[stage][virtual] == expected


def test_runs_of_blocks_are_written_short():
    profile = profile_of(9)
    assert megatron_layout(profile, Partition(bounds=(0, 3, 9, 12), method="by hand")) == "Ett|t*6|tL"


def test_a_heavy_head_gets_fewer_blocks_beside_it_over_virtual_stages():
    profile = profile_of(14, norm=False, seconds=[0, *[1] * 14, 3])
    assert megatron_layout(profile, minimize_interleaved(profile, 2, virtual=2)) == "Et*4|t*4|t*4|ttL"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bounds": (0, 2, 5)}, "covers 5 layers, the profile has 6"),
        ({"device_order": (1, 0)}, "cannot reorder devices"),
        ({"spread": (SpreadLayer(layer=5, stages=(0, 1)),)}, "cannot spread a layer"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(change, message):
    partition = Partition(**{"bounds": (0, 2, 6), "method": "by hand", **change})
    with pytest.raises(PartitionError, match=message):
        megatron_layout(profile_of(3), partition)


def test_a_model_without_a_head_is_refused():
    profile = profile_of(3)
    headless = profile.model_copy(update={"layers": profile.layers[:-1]})
    with pytest.raises(
        PartitionError, match="exactly one layer of kind 'embedding', first, and one of kind 'head', last"
    ):
        megatron_layout(headless, Partition(bounds=(0, 2, 5), method="by hand"))
