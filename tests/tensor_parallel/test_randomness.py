"""Ranks draw numbers of their own in a part of a layer, and the same ones before and behind it."""

import torch

from recparallel.tensor_parallel.randomness import OwnRandomness


def drawn(rank):
    """Numbers before, inside and behind the part that is a rank's own."""
    torch.manual_seed(7)
    own, before = OwnRandomness(rank), torch.rand(4)
    own.begin(torch.device("cpu"))
    inside = torch.rand(4)
    own.end()
    own.end()  # nothing began: nothing happens
    return before, inside, torch.rand(4)


def test_inside_ranks_differ_and_outside_they_do_not():
    (before, inside, behind), (same, other, alike) = drawn(0), drawn(1)
    assert torch.equal(before, same)
    assert torch.equal(behind, alike)
    assert not torch.equal(inside, other)
    assert not torch.equal(inside, behind)
    assert torch.equal(inside, drawn(0)[1])  # the same again when a layer is computed again
