"""Gathering positions and summing to them are each other's reverse, in values and in gradients."""

import pytest
import torch

from recparallel.tensor_parallel import TensorRanks


def exchanged(name, shape):
    """The result of one exchange, and the gradient of its weighted sum; inputs and weights differ by rank."""
    import torch.distributed as dist

    from recparallel.tensor_parallel import sequence

    rank, size = dist.get_rank(), dist.get_world_size()
    ranks = TensorRanks(rank, size, sequence=True)
    ranks.group = dist.group.WORLD
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    y = getattr(sequence, name)(x, ranks)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (y * weights).sum().backward()
    return x.detach(), y.detach(), weights, x.grad


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])  # with sequences, and with rows alone
@pytest.mark.parametrize("size", [2, 4])
def test_gathering(pools, size, shape):
    inputs, outputs, weights, gradients = zip(*pools[size].run(exchanged, name="gather_positions", shape=shape))
    whole = torch.cat(inputs, -2)
    assert all(torch.equal(each, whole) for each in outputs)
    expected = torch.stack(weights).sum(0).chunk(size, -2)
    for own, wanted in zip(gradients, expected):
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("shape", [(3, 8, 5), (8, 5)])
@pytest.mark.parametrize("size", [2, 4])
def test_summing(pools, size, shape):
    inputs, outputs, weights, gradients = zip(*pools[size].run(exchanged, name="sum_to_positions", shape=shape))
    for own, wanted in zip(outputs, torch.stack(inputs).sum(0).chunk(size, -2)):
        torch.testing.assert_close(own, wanted)
    whole = torch.cat(weights, -2)
    assert all(torch.equal(each, whole) for each in gradients)


def test_the_gradient_of_what_all_have_is_shared_out(pools):
    inputs, outputs, weights, gradients = zip(*pools[2].run(exchanged, name="all_positions", shape=(3, 4, 5)))
    assert all(torch.equal(each, torch.cat(inputs, -2)) for each in outputs)
    for rank, (own, weight) in enumerate(zip(gradients, weights)):
        assert torch.equal(own, weight.chunk(2, -2)[rank])


def test_while_layers_are_timed_shapes_are_those_of_the_exchange():
    from recparallel.tensor_parallel import sequence

    ranks = TensorRanks(1, 2, timing=True, sequence=True)
    x = torch.randn(3, 4, 5, requires_grad=True)
    assert sequence.gather_positions(x, ranks).shape == (3, 8, 5)
    share = sequence.sum_to_positions(x, ranks)
    share.sum().backward()
    assert share.shape == (3, 2, 5)
    assert x.grad.shape == x.shape
