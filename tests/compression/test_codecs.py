"""What holds for every codec."""

import math

import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel import registry
from recparallel.compression.base import Codec
from recparallel.compression.block_top_k import BlockTopK
from recparallel.compression.cast import BFloat16Codec, Float16Codec
from recparallel.compression.int4 import Int4
from recparallel.compression.int8 import Int8
from recparallel.compression.packed import pack_into, unpack
from recparallel.compression.random_k import RandomK
from recparallel.compression.sign import Sign
from recparallel.compression.top_k import TopK
from recparallel.compression.top_k_threshold import TopKThreshold
from recparallel.errors import ConfigError

CODECS = [
    BFloat16Codec(),
    BlockTopK(ratio=0.2, block=8),
    BlockTopK(ratio=1.0, block=64),
    Float16Codec(),
    Int4(block=8),
    Int4(),
    Int8(block=64),
    Int8(),
    RandomK(ratio=0.3),
    RandomK(ratio=1.0),
    Sign(),
    TopK(ratio=0.1),
    TopKThreshold(ratio=0.01),
]
every_codec = st.sampled_from(CODECS)
sizes = st.sampled_from([1, 2, 7, 63, 64, 65, 1001, 65_537, 200_003])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
seeds = st.integers(0, 2**31)


def gradient(size, dtype, seed):
    """Of very different magnitudes, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(2 * torch.randn(size, generator=generator))
    return (spread * torch.randn(size, generator=generator)).to(dtype)


def decoded(codec, payload, size, seed=0):
    total = torch.zeros(size)
    codec.add_decoded(payload, total, seed=seed)
    return total


def test_every_codec_in_the_registry_is_tested():
    made = {name: registry.codecs.load(name) for name in registry.codecs}
    assert {type(codec) for codec in CODECS} == {codec for codec in made.values() if isinstance(codec, type)}
    assert all(codec.name == name for name, codec in made.items() if isinstance(codec, type))


@settings(max_examples=examples(200), deadline=None)
@given(codec=every_codec, size=sizes, dtype=dtypes, seed=seeds)
def test_the_payload_is_as_told_and_survives_its_way(codec, size, dtype, seed):
    flat = gradient(size, dtype, seed)
    before, state = flat.clone(), torch.get_rng_state()
    payload = codec.encode(flat, seed=seed)
    assert torch.equal(flat, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(len(t), t.dtype) for t in payload] == [tuple(part) for part in codec.layout(size, dtype)]
    wire = torch.empty(codec.payload_bytes(size, dtype), dtype=torch.uint8)
    pack_into(payload, wire)
    assert all(map(torch.equal, unpack(wire, codec.layout(size, dtype)), payload))


@settings(max_examples=examples(100), deadline=None)
@given(codec=every_codec, size=sizes, seed=seeds)
def test_the_same_seed_gives_the_same_payload_and_decoding_adds(codec, size, seed):
    flat = gradient(size, torch.float32, seed)
    one, two = codec.encode(flat, seed=seed), codec.encode(flat, seed=seed)
    assert all(map(torch.equal, one, two))
    total = torch.ones(size)
    codec.add_decoded(one, total, seed=seed)
    codec.add_decoded(two, total, seed=seed, alpha=0.5)
    assert torch.allclose(total - 1, 1.5 * decoded(codec, one, size, seed), rtol=1e-4, atol=1e-5)


@settings(max_examples=examples(200), deadline=None)
@given(codec=every_codec, size=sizes, seed=seeds)
def test_the_error_is_within_the_bound(codec, size, seed):
    flat = gradient(size, torch.float32, seed)
    error = (decoded(codec, codec.encode(flat, seed=seed), size, seed) - flat).double()
    norm = flat.double().norm()
    match codec:
        case BFloat16Codec():
            assert (error.abs() <= 2**-8 * flat.abs()).all()
        case Float16Codec():
            assert (error.abs() <= 2**-11 * flat.abs().clamp(min=2**-28 * flat.abs().max())).all()
        case Int4() | Int8():
            for piece, wrong in zip(flat.split(codec.block), error.split(codec.block)):
                assert (wrong.abs() <= piece.abs().max() / codec.levels * (1 + 1e-5)).all()
        case Sign():
            delta = flat.double().abs().sum() ** 2 / (size * norm**2)
            assert error.norm() ** 2 <= (1 - delta) * norm**2 + 1e-5 * norm**2
        case BlockTopK():
            blocks = math.ceil(size / codec.block)
            assert error.norm() <= math.sqrt(1 - math.ceil(codec.ratio * blocks) / blocks) * norm + 1e-6 * norm
        case TopK() | TopKThreshold():
            assert error.norm() <= math.sqrt(1 - codec.num_kept(size) / size) * norm + 1e-6 * norm
        case RandomK():
            assert error.norm() <= norm
        case _:
            raise AssertionError(codec)


@pytest.mark.parametrize("codec", [Int8(block=16), Int4(block=16)], ids=lambda codec: codec.name)
def test_rounding_is_right_in_the_mean(codec):
    """4,000 seeds: an error of 1 / levels is drawn down by their root."""
    flat = gradient(48, torch.float32, 3)
    mean = torch.stack([decoded(codec, codec.encode(flat, seed=seed), 48) for seed in range(4000)]).mean(0)
    scale = flat.view(3, 16).abs().amax(1).repeat_interleave(16) / codec.levels
    assert ((mean - flat).abs() <= scale * 5 / math.sqrt(12 * 4000) * math.sqrt(3)).all()


def test_random_elements_are_all_as_likely_and_never_twice():
    codec = RandomK(ratio=0.3)
    drawn = torch.zeros(50)
    for seed in range(2000):
        once = decoded(codec, codec.encode(torch.ones(50), seed=seed), 50, seed)
        assert once.max() == 1
        assert once.sum() == 15
        drawn += once
    assert ((drawn / 2000 - 0.3).abs() < 5 * math.sqrt(0.3 * 0.7 / 2000)).all()


@pytest.mark.parametrize("size", [70_000, 200_003, 1_000_000])
@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("shape", ["gauss", "ties", "few", "slope"])
def test_a_threshold_selects_what_sorting_selects(size, ratio, shape):
    generator = torch.Generator().manual_seed(size)
    flat = torch.randn(size, generator=generator)
    if shape == "ties":
        flat = flat.round()
    elif shape == "few":
        flat = torch.where(torch.arange(size) % 50_000 == 7, flat, torch.zeros(()))
    elif shape == "slope":
        flat = flat * torch.linspace(0, 1, size)
    positions = TopKThreshold(ratio=ratio).select(flat, seed=5)
    best = torch.topk(flat.abs(), math.ceil(ratio * size)).values
    assert len(positions.unique()) == len(best)
    assert torch.equal(flat[positions].abs().sort(descending=True).values, best)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_a_gradient_of_nothing_but_nan_is_seen(codec, bad):
    """So a hook sends one in which an element is not finite; see tests/data_parallel."""
    payload = codec.encode(torch.full((100_003,), bad))
    assert not decoded(codec, payload, 100_003).isfinite().all()


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_zeros_and_very_small_numbers_stay_finite(codec):
    assert torch.equal(decoded(codec, codec.encode(torch.zeros(1001)), 1001), torch.zeros(1001))
    small = decoded(codec, codec.encode(torch.full((1001,), 1e-42)), 1001)
    assert small.abs().max() <= 1e-40


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Int8(block=7), "int8: block must be an integer of at least 8 and a multiple of 8, got 7"),
        (lambda: Int4(block=2**17), "int4: block must be an integer of at most 65536"),
        (lambda: Int8(block=64.0), "got 64.0 (recparallel.compression.block)"),
        (lambda: RandomK(ratio=0), "random_k: ratio must be a number in (0, 1], got 0"),
        (lambda: BlockTopK(ratio=2), "block_top_k: ratio must be a number in (0, 1], got 2"),
        (lambda: BlockTopK(block=1), "block_top_k: block must be an integer of at least 2, got 1"),
        (lambda: TopKThreshold(ratio=True), "top_k_threshold: ratio must be a number in (0, 1], got True"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_key(make, said):
    with pytest.raises(ConfigError) as raised:
        make()
    assert said in str(raised.value)


@given(share=st.floats(0, 1), ratio=st.floats(0.001, 1))
@settings(max_examples=examples(50))
@pytest.mark.parametrize("kind", [TopK, TopKThreshold, RandomK, BlockTopK])
def test_a_warm_up_comes_down_to_the_ratio(kind, share, ratio):
    codec = kind(ratio=ratio)
    assert ratio * (1 - 1e-9) <= codec.warming_up(share).ratio <= 1.0
    assert codec.warming_up(0.0).ratio == 1.0
    assert codec.warming_up(1.0) == codec


def test_a_codec_without_a_ratio_has_no_warm_up():
    assert Codec.warming_up(Int8(), 0.0) == Int8()
