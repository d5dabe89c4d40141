import inspect
import math

import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.compression.packed import pack_into, unpack
from recparallel.compression.top_k import TopK
from recparallel.config import parse_config
from recparallel.data_parallel.configured import check_codec
from recparallel.errors import ConfigError

dtypes = st.sampled_from([torch.float32, torch.bfloat16])
sizes = st.sampled_from([1, 2, 3, 7, 64, 1001, 65_537])
ratios = st.sampled_from([1e-6, 0.01, 0.3, 0.5, 0.999, 1.0]) | st.floats(1e-6, 1.0)
seeds = st.integers(0, 999)


def gradient(size, dtype, seed, *, ties=False):
    generator = torch.Generator().manual_seed(seed)
    if ties:  # few different magnitudes, many zeros
        return torch.randint(-2, 3, (size,), generator=generator).to(dtype)
    return torch.randn(size, generator=generator).to(dtype)


def decoded(codec, payload, size, dtype=torch.float32):
    total = torch.zeros(size, dtype=dtype)
    codec.add_decoded(payload, total)
    return total


def kept(ratio, size):
    return math.ceil(ratio * size)


@settings(max_examples=examples(60), deadline=None)
@given(size=sizes, dtype=dtypes, ratio=ratios, seeds=st.tuples(seeds, seeds))
def test_shapes_and_types_depend_on_the_size_alone(size, dtype, ratio, seeds):
    """Ranks hold other gradients and must offer payloads that match."""
    codec = TopK(ratio=ratio)
    first, second = (codec.encode(gradient(size, dtype, seed)) for seed in seeds)
    zeros = codec.encode(torch.zeros(size, dtype=dtype))
    described = [[(tensor.shape, tensor.dtype) for tensor in payload] for payload in (first, second, zeros)]
    assert described == [[((kept(ratio, size),), dtype), ((kept(ratio, size),), torch.int32)]] * 3
    assert all(tensor.is_contiguous() for tensor in first)


@settings(max_examples=examples(60), deadline=None)
@given(size=sizes, dtype=dtypes, ratio=ratios, seed=seeds)
def test_the_size_that_is_told_is_the_size_that_is_sent(size, dtype, ratio, seed):
    codec = TopK(ratio=ratio)
    payload = codec.encode(gradient(size, dtype, seed))
    wire = torch.empty(codec.payload_bytes(size, dtype), dtype=torch.uint8)
    pack_into(payload, wire)
    assert all(map(torch.equal, unpack(wire, codec.layout(size, dtype)), payload))


def test_positions_beyond_31_bits_take_8_bytes():
    codec = TopK(ratio=2e-9)
    assert (
        codec.payload_bytes(2**31 - 1, torch.float32) == 5 * 4 + 4 + 5 * 4 + 4
    )  # each part is filled up to eight bytes
    assert codec.payload_bytes(2**31, torch.float32) == 5 * 4 + 4 + 5 * 8


@settings(max_examples=examples(60), deadline=None)
@given(size=sizes, dtype=dtypes, ratio=ratios, seed=seeds, ties=st.booleans())
def test_the_largest_entries_are_kept_as_they_are_and_the_rest_is_zero(size, dtype, ratio, seed, ties):
    codec = TopK(ratio=ratio)
    flat = gradient(size, dtype, seed, ties=ties)
    before = flat.clone()
    values, positions = codec.encode(flat)
    assert torch.equal(flat, before)
    assert len(set(positions.tolist())) == len(positions)
    assert torch.equal(values, flat[positions.long()])
    left_out = torch.ones(size, dtype=torch.bool)
    left_out[positions.long()] = False
    if left_out.any():
        assert flat[left_out].abs().max() <= values.abs().min()
    expected = torch.where(left_out, torch.zeros_like(flat), flat)
    assert torch.equal(decoded(codec, (values, positions), size, dtype), expected)


@settings(max_examples=examples(60), deadline=None)
@given(size=sizes, dtype=dtypes, ratio=ratios, seed=seeds, ties=st.booleans())
def test_the_error_is_within_the_bound(size, dtype, ratio, seed, ties):
    """``sqrt(1 - k / N) · ‖g‖``, which equal magnitudes reach."""
    codec = TopK(ratio=ratio)
    flat = gradient(size, dtype, seed, ties=ties).double()
    error = (flat - decoded(codec, codec.encode(flat), size, torch.float64)).norm()
    bound = math.sqrt(1 - kept(ratio, size) / size) * flat.norm()
    assert error <= bound * (1 + 1e-9)  # norms in fp64 round by size · 1e-16 at most


def test_equal_magnitudes_reach_the_bound():
    codec = TopK(ratio=0.25)
    flat = torch.tensor([1.0, -1.0] * 8)
    error = (flat - decoded(codec, codec.encode(flat), 16)).norm().item()
    assert error == pytest.approx(math.sqrt(0.75) * 4, rel=1e-6)  # one fp32 norm of 12 ones


@settings(max_examples=examples(30), deadline=None)
@given(size=sizes, dtype=dtypes, seed=seeds)
def test_a_ratio_of_one_loses_nothing(size, dtype, seed):
    codec = TopK(ratio=1.0)
    flat = gradient(size, dtype, seed)
    assert torch.equal(decoded(codec, codec.encode(flat), size, dtype), flat)


@pytest.mark.parametrize(("size", "ratio", "count"), [(1, 1e-6, 1), (100, 0.01, 1), (101, 0.01, 2), (3, 0.5, 2)])
def test_the_share_is_rounded_up(size, ratio, count):
    assert len(TopK(ratio=ratio).encode(torch.randn(size))[0]) == count


@given(seed=seeds, size=sizes)
@settings(max_examples=examples(20), deadline=None)
def test_the_same_gradient_gives_the_same_payload(seed, size):
    codec = TopK(ratio=0.3)
    flat = gradient(size, torch.float32, seed)
    assert all(torch.equal(a, b) for a, b in zip(codec.encode(flat), codec.encode(flat)))


def test_payloads_add_up():
    codec = TopK(ratio=0.5)
    a, b = torch.tensor([1.0, 5.0, 0.0, -4.0]), torch.tensor([3.0, 2.0, 0.0, 0.0])
    total = torch.tensor([10.0, 10.0, 10.0, 10.0])
    codec.add_decoded(codec.encode(a), total)
    codec.add_decoded(codec.encode(b), total)
    assert total.tolist() == [13.0, 17.0, 10.0, 6.0]


def test_bfloat16_payloads_add_up_in_full_precision():
    codec = TopK(ratio=1.0)
    payload = codec.encode(torch.tensor([1.0], dtype=torch.bfloat16))
    total = torch.tensor([2.0**-12])  # bf16 would lose it beside a one
    codec.add_decoded(payload, total)
    assert total.item() == 1.0 + 2.0**-12


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.0001, 2, math.nan, math.inf, "0.5", None])
def test_a_ratio_out_of_range_is_refused_with_its_key(ratio):
    with pytest.raises(ConfigError) as raised:
        TopK(ratio=ratio)
    assert str(raised.value) == (
        f"top_k: ratio must be a number in (0, 1], got {ratio!r} (recparallel.compression.ratio)"
    )


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="ratios"):
        TopK(ratios=0.5)
    with pytest.raises(TypeError):
        TopK(0.5)  # by keyword only


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratios": 0.5}, ["codec 'top_k' does not take {'ratios': 0.5}", "it takes ['ratio']"]),
        ({"error_feedbak": False}, ["{'error_feedbak': False}", "it takes ['ratio']"]),
        ({"ratio": 5}, ["ratio must be a number in (0, 1], got 5", "recparallel.compression.ratio"]),
    ],
)
def test_a_wrong_option_in_the_config_is_refused_with_the_allowed_ones(options, said):
    section = parse_config({"recparallel": {"compression": {"codec": "top_k", **options}}})
    with pytest.raises(ConfigError) as raised:
        check_codec(section.compression)
    for words in said:
        assert words in str(raised.value)


def test_a_right_option_in_the_config_is_taken():
    check_codec(parse_config({"recparallel": {"compression": {"codec": "top_k", "ratio": 0.5}}}).compression)


def test_the_codec_is_frozen_and_compares_by_its_options():
    codec = TopK(ratio=0.5)
    with pytest.raises(AttributeError):
        codec.ratio = 0.1
    assert codec == TopK(ratio=0.5) != TopK(ratio=0.1)
    assert list(inspect.signature(TopK).parameters) == ["ratio"]
    assert TopK() == TopK(ratio=0.01)
