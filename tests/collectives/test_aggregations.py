"""Every codec by every aggregation that takes it, on 1 to 5 ranks: the same bits everywhere, and nothing lost."""

import math

import pytest
import torch

from recparallel.collectives.choice import aggregation_for, check_aggregation
from recparallel.compression.block_top_k import BlockTopK
from recparallel.compression.cast import BFloat16Codec, Float16Codec
from recparallel.compression.int4 import Int4
from recparallel.compression.int8 import Int8
from recparallel.compression.random_k import RandomK
from recparallel.compression.sign import Sign
from recparallel.compression.top_k import TopK
from recparallel.compression.top_k_threshold import TopKThreshold
from recparallel.errors import ConfigError

CODECS = (
    BFloat16Codec(),
    BlockTopK(ratio=0.2, block=8),
    Float16Codec(),
    Int4(block=16),
    Int8(block=16),
    RandomK(ratio=0.2),
    Sign(),
    TopK(ratio=0.05),
    TopK(ratio=1.0),
    TopKThreshold(ratio=0.02),
)
NAMES = ("gathered", "reduced", "sparse", "two_hop")
SIZES = (65, 1001, 70_001)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def takes(codec, name):
    try:
        check_aggregation(codec, name)
    except ConfigError:
        return False
    return True


def gradient(size, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.exp(2 * torch.randn(size, generator=generator)) * torch.randn(size, generator=generator)).to(dtype)


def exchanged(*, name):
    """For every codec, size and type: what was given, the sum, what is kept, and the bytes that were sent."""
    import torch.distributed as dist

    found = {}
    for codec in CODECS:
        if not takes(codec, name):
            continue
        for size in SIZES:
            for dtype in DTYPES if size == 65 else DTYPES[:1]:
                if size == 70_001 and not isinstance(codec, (Int8, TopKThreshold)):
                    continue
                aggregation = aggregation_for(codec, name, dist.group.WORLD)
                given = gradient(size, dtype, 31 * size + dist.get_rank())
                before, exact = given.clone(), torch.promote_types(dtype, torch.float32)
                total = torch.full((size,), math.nan, dtype=exact)  # whatever was there is replaced
                sent = aggregation.sum(codec, given, total, seed=size, keep_rest=False)
                assert torch.equal(given, before)
                rest, again = given.to(exact, copy=True), torch.empty_like(total)
                aggregation.sum(codec, rest, again, seed=size, keep_rest=True)
                alone = given.to(exact, copy=True)
                aggregation.sum(codec, alone, alone, seed=size, keep_rest=False)  # in one memory
                assert torch.equal(again, alone)
                if dtype == exact:
                    assert torch.equal(again, total)
                else:  # encoded from fewer bits: as near to each other as a codec comes
                    assert (again - total).norm() <= 0.5 * again.norm() + 1e-3, str(codec)
                found[str(codec), size, dtype] = given, again, rest, sent
    return found


@pytest.mark.parametrize("world", [1, 2, 3, *(pytest.param(more, marks=pytest.mark.slow) for more in (4, 5))])
@pytest.mark.parametrize("name", NAMES)
def test_ranks_get_the_same_bits_and_what_is_missing_is_kept(pools, world, name):
    """``total + sum of rest == sum of given``, rounded as sums of so many fp32 are."""
    ranks = pools[world].run(exchanged, name=name)
    assert ranks[0]
    for case in ranks[0]:
        givens, totals, rests, _ = zip(*(rank[case] for rank in ranks))
        assert all(torch.equal(total, totals[0]) for total in totals), case
        exact = sum(given.double() for given in givens)
        scale = sum(given.double().abs() for given in givens) + sum(rest.double().abs() for rest in rests)
        error = totals[0].double() + sum(rest.double() for rest in rests) - exact
        assert (error.abs() <= 2**-20 * scale.max() * 1e-3 + 2**-20 * scale).all(), case


@pytest.mark.parametrize("world", [2, 3, 5])
def test_a_lossless_codec_gives_the_dense_sum(pools, world):
    """top_k of everything, gathered or by regions (where nothing is cut when each region holds what each may keep)."""
    for name in ("gathered", "sparse"):
        ranks = pools[world].run(exchanged, name=name)
        for (codec, size, dtype), (_, total, rest, _) in ranks[0].items():
            if codec != str(TopK(ratio=1.0)):
                continue
            exact = sum(rank[codec, size, dtype][0].double() for rank in ranks)
            if name == "gathered":
                assert torch.allclose(total.double(), exact, rtol=1e-5, atol=1e-5)
                assert not rest.any()
            else:
                assert torch.allclose(total.double()[total != 0], exact[total != 0], rtol=1e-5, atol=1e-5)
                assert (total != 0).float().mean() > 0.99


def decoded_parts(*, name):
    """The sum by ``name``, beside that of all ranks' payloads, each decoded by its own seed."""
    import torch.distributed as dist

    from recparallel.collectives.base import Aggregation

    found = []
    for codec in (codec for codec in CODECS if takes(codec, name)):
        aggregation: Aggregation = aggregation_for(codec, name, dist.group.WORLD)
        given = gradient(1001, torch.float32, dist.get_rank())
        total, own = torch.empty(1001), torch.zeros(1001)
        aggregation.sum(codec, given, total, seed=9, keep_rest=False)
        seed = aggregation.seed_of(codec, 9, rank=dist.get_rank())
        codec.add_decoded(codec.encode(given, seed=seed), own, seed=seed)
        parts = [torch.empty(1001) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        found.append((str(codec), total, sum(parts)))
    return found


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("name", ["gathered", "reduced"])
def test_one_hop_is_the_sum_of_the_decoded_parts(pools, world, name):
    for codec, total, parts in pools[world].run(decoded_parts, name=name)[0]:
        assert torch.allclose(total, parts, rtol=1e-6, atol=1e-6), codec


def test_volumes_grow_as_documented(pools):
    """Of two hops and of regions it stays the same from 2 to 5 ranks, but for what fills up shares."""
    few, many = pools[2].run(exchanged, name="two_hop")[0], pools[5].run(exchanged, name="two_hop")[0]
    for case in few:
        if case[1] == 70_001:
            assert many[case][3] < 1.5 * few[case][3], case
    case = (str(TopKThreshold(ratio=0.02)), 70_001, torch.float32)
    for world in (2, 5):
        sent = pools[world].run(exchanged, name="sparse")[0][case][3]
        assert sent <= 8 * (1401 + 1401 / world + 2) + 8 * world


def skewed(*, ratio):
    """Every rank's large elements lie at the front: regions must not give all the work to the first rank."""
    import torch.distributed as dist

    from recparallel.collectives.sparse import SparseRegions

    given = gradient(20_000, torch.float32, dist.get_rank())
    given[2000:] *= 1e-3
    aggregation = SparseRegions(dist.group.WORLD)
    positions = TopK(ratio=ratio).select(given).sort().values
    return aggregation._bounds(20_000, positions)


def test_regions_follow_where_the_elements_lie(pools):
    (first, *others) = pools[4].run(skewed, ratio=0.05)
    assert all(bounds == first for bounds in others)
    assert first[0] == 0
    assert first[-1] == 20_000
    assert first[3] < 2000


def test_sorting_out_what_cannot_be_summed():
    with pytest.raises(ConfigError) as raised:
        check_aggregation(Int8(), "sparse")
    assert "'sparse' cannot sum what codec 'int8' sends" in str(raised.value)
    assert "allowed: auto, gathered, hierarchical, two_hop" in str(raised.value)
    with pytest.raises(ConfigError, match=r"unknown aggregation 'gatherd'.*Did you mean 'gathered'"):
        check_aggregation(Int8(), "gatherd")


def two_nodes(*, node_of):
    """Four ranks on nodes: every codec, or what is refused."""
    import torch.distributed as dist

    from recparallel.collectives.hierarchical import node_groups

    try:
        nodes = node_groups(dist.group.WORLD, node=node_of[dist.get_rank()])
    except ConfigError as error:
        return str(error)
    found = []
    for codec in CODECS:
        given = gradient(1001, torch.float32, dist.get_rank())
        aggregation = aggregation_for(codec, "hierarchical", dist.group.WORLD, nodes=nodes)
        total, rest = torch.empty(1001), given.clone()
        aggregation.sum(codec, rest, total, seed=3, keep_rest=True)
        alone = given.clone()
        aggregation.sum(codec, alone, alone, seed=3, keep_rest=False)
        assert torch.equal(alone, total)
        found.append((given, total, rest))
    return found


def test_two_levels_lose_nothing_either(pools):
    for givens, totals, rests in (zip(*case) for case in zip(*pools[4].run(two_nodes, node_of="abab"))):
        assert all(torch.equal(total, totals[0]) for total in totals)
        exact = sum(given.double() for given in givens)
        error = totals[0].double() + sum(rest.double() for rest in rests) - exact
        assert (
            error.abs().max() <= 2**-18 * exact.abs().max()
        )  # some ten roundings of 2^-24, of numbers up to four times as large


@pytest.mark.parametrize("node_of", ["aaab", "aaaa", "abcd"])
def test_nodes_without_two_levels_are_refused_on_every_rank(pools, node_of):
    for said in pools[4].run(two_nodes, node_of=node_of):
        assert "'hierarchical' needs two nodes or more" in said
        assert "ranks [0, 1, 2, 3]" in said
