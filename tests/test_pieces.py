import pytest
import torch

from recparallel.pieces import pieces


@pytest.mark.parametrize("shape", [(0,), (3,), (2**17,), (3, 100_000), (2**18, 2)])
def test_pieces_are_short_views_that_make_up_the_tensor(shape):
    tensor = torch.randn(shape).to(torch.bfloat16)
    parts = pieces(tensor)
    assert all(len(part) <= 2**17 for part in parts)
    assert torch.equal(torch.cat(list(parts)), tensor.view(-1))
    assert all(part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for part in parts)


def test_what_needs_no_cast_is_left_whole():
    tensor = torch.randn(300_001)
    assert pieces(tensor) == (tensor,)


@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf])
def test_the_norm_of_pieces_is_that_of_the_whole(bad):
    tensor = torch.randn(300_001).to(torch.bfloat16)
    if bad is not None:
        tensor[-1] = bad
    found = torch.stack([piece.float().norm() for piece in pieces(tensor)]).norm()
    expected = torch.linalg.vector_norm(tensor.double()).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, equal_nan=True)
