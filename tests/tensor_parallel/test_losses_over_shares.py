"""Losses over shares of a table are those over the whole one, with their gradients, and keep a share of the memory."""

from pathlib import Path

import pytest
import torch

NUM_ITEMS, WIDTH, TARGETS = 42, 6, 17  # 43 rows: shares of different lengths
LOSSES = {
    "cross_entropy": {},
    "chunked_cross_entropy": {"chunk_mib": 3e-4},  # a few targets at a time
    "gbce": {"num_negatives": 11},
    "in_batch_softmax": {"item_counts": torch.arange(NUM_ITEMS + 1)},
    "sampled_softmax": {"num_negatives": 11, "item_counts": torch.arange(NUM_ITEMS + 1)},
}
EXACT = {"rtol": 1e-10, "atol": 1e-12}
SINGLE = {"rtol": 1e-5, "atol": 1e-6}  # numbers of size 1, with 1.2e-7 of rounding each


def over_shares(name, dtype, *, scale=1.0, targets=TARGETS, held=None):
    """Loss and gradients of each rank, over its share of the table and over all of it."""
    import torch.distributed as dist

    from recparallel import registry
    from recparallel.tensor_parallel import TensorRanks

    ranks = TensorRanks(dist.get_rank(), dist.get_world_size())
    ranks.group = dist.group.WORLD
    generator = torch.Generator().manual_seed(0)
    hidden = (scale * torch.randn(1, targets, WIDTH, generator=generator, dtype=torch.float64)).to(dtype)
    table = torch.randn(NUM_ITEMS + 1, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    labels = (
        torch.randint(1, NUM_ITEMS + 1, (1, targets), generator=generator) if held is None else torch.tensor([held])
    )
    labels[:, 3:5] = -100
    whole = registry.losses.load(name)(num_items=NUM_ITEMS, **LOSSES[name])
    start, stop = ranks.share(NUM_ITEMS + 1)
    found = []
    for loss, rows in ((whole, table), (whole.for_ranks(ranks), table[start:stop])):
        torch.manual_seed(5)  # the same negatives
        h, t = hidden.clone().requires_grad_(), rows.clone().requires_grad_()
        value = loss((h, t), labels)
        (3 * value).backward()
        found.append((value.detach(), h.grad, t.grad))
    (value, of_hidden, of_table), shared = found
    return (value, of_hidden, of_table[start:stop]), shared


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, EXACT), (torch.float32, SINGLE)])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_those_of_the_whole_table(pools, name, world, dtype, close):
    for whole, shared in pools[world].run(over_shares, name=name, dtype=dtype):
        for expected, got in zip(whole, shared):
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(got, expected, **close)


@pytest.mark.parametrize("name", LOSSES)
def test_large_scores_do_not_overflow(pools, name):
    """exp(1000) is no number, also where the largest score of one rank is far from that of the other."""
    for whole, shared in pools[2].run(over_shares, name=name, dtype=torch.float32, scale=500.0):
        for expected, got in zip(whole, shared):
            assert got.isfinite().all()
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("held", [[-100] * 8, [1, 1, 2, 1, 2, 1, 1, 2], [42, 41, 42, 0, 0, 42, 42, 42]])
def test_targets_of_one_rank_alone_and_none_at_all(pools, name, held):
    for whole, shared in pools[4].run(over_shares, name=name, dtype=torch.float64, targets=8, held=held):
        for expected, got in zip(whole, shared):
            torch.testing.assert_close(got, expected, **EXACT)


def functional_cross_entropy(hidden, table, targets):
    """The dense one."""
    return torch.nn.functional.cross_entropy(hidden @ table.T, targets, reduction="sum")


def peak(name, shared):
    """Bytes that a forward and backward pass over 200,000 items takes on this rank."""
    import torch.distributed as dist

    from recparallel import registry
    from recparallel.tensor_parallel import TensorRanks

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

    ranks = TensorRanks(dist.get_rank(), dist.get_world_size())
    ranks.group = dist.group.WORLD
    start, stop = ranks.share(200_001) if shared else (0, 200_001)
    if name == "torch":
        total = functional_cross_entropy
    else:
        loss = registry.losses.load(name)(num_items=200_000)
        total = (loss.for_ranks(ranks) if shared else loss).total
    hidden = torch.randn(256, 32).requires_grad_()
    table = torch.randn(stop - start, 32).requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = status("VmRSS")
    total(hidden, table, torch.arange(1, 257)).backward()
    return status("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("name", "most"), [("cross_entropy", 0.4), ("chunked_cross_entropy", 0.25)])
def test_ranks_keep_a_share_of_the_scores(pools, name, most):
    """256 targets × 200,001 rows of fp32 are 195 MiB, of which torch's softmax holds several at once."""
    whole = min(pools[2].run(peak, name="torch", shared=False))
    assert whole > 2 * 256 * 200_001 * 4
    assert max(pools[2].run(peak, name=name, shared=True)) < most * whole


def test_a_loss_that_needs_the_whole_table_says_so():
    from recparallel.errors import ConfigError
    from recparallel.models.losses import TargetLoss
    from recparallel.tensor_parallel import ALONE, TensorRanks

    class NeedsAll(TargetLoss):
        def total(self, hidden_ND, table_SD, targets_N):
            return hidden_ND.sum()

    assert isinstance(NeedsAll().for_ranks(ALONE), NeedsAll)
    with pytest.raises(
        ConfigError, match="loss NeedsAll needs the whole table on every rank, which 2 tensor ranks share"
    ):
        NeedsAll().for_ranks(TensorRanks(1, 2))
