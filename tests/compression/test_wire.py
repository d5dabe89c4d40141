"""Formats of tensors on their way between stages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recparallel.compression.wire import WIRE_FORMATS, Cast, wire_format

PRECISION = {"bf16": 2**-8, "fp16": 2**-11}
"""Largest relative error of rounding to the nearest."""


def there_and_back(name, tensor):
    form = wire_format(name, tensor.dtype)
    wire = form.encode(tensor)
    assert (wire.dim(), len(wire), wire.dtype, wire.is_contiguous()) == (
        1,
        form.numbers(tensor.shape),
        form.dtype,
        True,
    )
    return form.decode(wire, tensor.shape, tensor.dtype)


@pytest.mark.parametrize("name", WIRE_FORMATS)
@given(
    seed=st.integers(0, 1000),
    exponent=st.integers(-110, 120),
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
)
def test_every_number_is_rounded_whatever_the_size_of_them_all(name, seed, exponent, shape):
    """Relative to the number itself in bf16; in fp16 to the largest of the tensor where a number is 2^-14 of that or less."""
    tensor = torch.ldexp(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), torch.tensor(exponent))
    found = there_and_back(name, tensor)
    assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    allowed = tensor.abs().clamp(min=tensor.abs().max() * 2**-14) * PRECISION[name]
    assert ((found - tensor).abs() <= allowed).all()


@pytest.mark.parametrize("name", WIRE_FORMATS)
@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, float("nan")], [float("inf"), -float("inf")], [1e-44, 0.0], []])
def test_zeros_and_what_is_not_finite_arrive(name, values):
    tensor = torch.tensor(values)
    found = there_and_back(name, tensor)
    assert torch.equal(found.isfinite(), tensor.isfinite())
    assert torch.equal(found.isnan(), tensor.isnan())
    assert torch.allclose(found, tensor, atol=1e-40, equal_nan=True)


@pytest.mark.parametrize("name", ["same", *WIRE_FORMATS])
def test_half_precision_crosses_as_it_is(name):
    tensor = torch.randn(3, 4).to(torch.bfloat16).t()
    form = wire_format(name, tensor.dtype)
    assert isinstance(form, Cast)
    assert form.dtype == tensor.dtype
    assert torch.equal(there_and_back(name, tensor), tensor)


def test_without_a_format_full_precision_does_too():
    tensor = torch.randn(3, 4)
    assert torch.equal(there_and_back("same", tensor), tensor)
