import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from effort import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from recparallel import registry
from recparallel.errors import ConfigError
from recparallel.models.losses import IGNORE, TargetLoss, softmax
from recparallel.models.losses.chunked_cross_entropy import ChunkedCrossEntropy
from recparallel.models.losses.cross_entropy import CrossEntropy
from recparallel.models.losses.sampled_softmax import SampledSoftmax

B, L, D, ITEMS = 3, 5, 4, 12

# fp32 sums of at most 60 terms of size 10, each rounded by 6e-8 of itself.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def outputs_and_labels(*, seed=0, targets=0.6):
    """Outputs of a head with gradients, and ragged labels."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, L, D, generator=generator).requires_grad_()
    table = torch.randn(ITEMS + 1, D, generator=generator).requires_grad_()
    labels = torch.randint(1, ITEMS + 1, (B, L), generator=generator)
    labels[torch.rand(B, L, generator=generator) > targets] = IGNORE
    return (hidden, table), labels


def make(name, **options):
    defaults = {
        "sampled_softmax": {"num_negatives": 6},
        "gbce": {"num_negatives": 6},
        "answers": {"yes": 2, "no": 5},
    }
    options = {**defaults.get(name, {}), **options}
    return registry.losses.load(name)(num_items=ITEMS, **options)


each_loss = pytest.mark.parametrize("name", sorted(registry.LOSSES))


# --- the softmax over the whole catalogue


@pytest.mark.parametrize("hidden_type", [torch.float32, torch.bfloat16])
def test_under_autocast_the_softmax_is_that_of_half_precision(hidden_type):
    """Weights stay in fp32 there, and hidden states may be of either type."""
    (hidden, table), labels = outputs_and_labels()
    halves = tuple(x.detach().bfloat16().requires_grad_() for x in (hidden, table))
    expected = make("cross_entropy")(halves, labels)
    expected.backward()
    given = hidden.detach().to(hidden_type).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make("cross_entropy")((given, table), labels)
    loss.backward()
    assert torch.equal(loss, expected)
    for own, half, type_ in ((given, halves[0], hidden_type), (table, halves[1], torch.float32)):
        assert own.grad.dtype == type_
        torch.testing.assert_close(own.grad, half.grad.to(type_), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 13, 100])
def test_scores_in_pieces_are_those_of_all_at_once(monkeypatch, rows, dtype):
    (hidden, table), labels = outputs_and_labels()
    hidden, table, *again = (x.detach().to(dtype).requires_grad_() for x in (hidden, table, hidden, table))
    expected = make("cross_entropy")((hidden, table), labels)
    expected.backward()
    monkeypatch.setattr(softmax, "_AT_ONCE", {"cpu": 1})
    monkeypatch.setattr(softmax, "_FEWEST_ROWS", rows)
    loss = make("cross_entropy")(tuple(again), labels)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
    # Half-precision gradients are rounded to 8 bits or more, 4e-3, in every piece.
    close = CLOSE if dtype.itemsize > 2 else {"rtol": 1e-2, "atol": 1e-2}
    for own, whole in zip(again, (hidden, table)):
        torch.testing.assert_close(own.grad, whole.grad, **close)


# --- what every loss shares


@each_loss
def test_it_is_a_target_loss(name):
    loss = make(name)
    assert isinstance(loss, TargetLoss)
    assert loss.targets_per_micro_batch is None


@each_loss
def test_positions_without_a_target_change_nothing(name):
    (hidden, table), labels = outputs_and_labels()
    loss = make(name)

    def value(hidden):
        torch.manual_seed(1)
        return loss((hidden, table), labels)

    disturbed = hidden.detach().clone()
    disturbed[labels == IGNORE] = 1e4
    assert torch.equal(value(hidden), value(disturbed))
    value(hidden).backward()
    assert (hidden.grad[labels == IGNORE] == 0).all()
    assert (hidden.grad[labels != IGNORE] != 0).any(-1).all()


@each_loss
def test_alone_it_is_the_mean_over_the_targets_at_hand(name):
    outputs, labels = outputs_and_labels()
    loss = make(name)
    hidden, table = outputs
    wanted = labels != IGNORE
    torch.manual_seed(1)
    total = loss.total(hidden[wanted], table, labels[wanted])
    torch.manual_seed(1)
    torch.testing.assert_close(loss(outputs, labels), total / loss.count(labels), rtol=1e-6, atol=0)
    assert loss.count(labels) == int(wanted.sum()) > 1


@each_loss
@settings(max_examples=examples(25), deadline=None)
@given(counts=st.lists(st.integers(0, B * L), min_size=1, max_size=4), seed=st.integers(0, 99))
@example(counts=[1, 0, 0, 0], seed=0)  # a quarter of a target per micro-batch
@example(counts=[0, 0], seed=0)
def test_the_uniform_average_of_ragged_micro_batches_is_the_mean_over_all_targets(name, counts, seed):
    """What a pipeline and data parallelism average, with the number that the engine sets; also where there are fewer
    targets than micro-batches."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(ITEMS + 1, D, generator=generator)
    loss = make(name)
    batches = []
    for count in counts:
        labels = torch.full((B * L,), IGNORE)
        labels[torch.randperm(B * L, generator=generator)[:count]] = torch.randint(
            1, ITEMS + 1, (count,), generator=generator
        )
        batches.append((torch.randn(B, L, D, generator=generator), labels.view(B, L)))

    def total(hidden, labels):
        torch.manual_seed(seed)  # every micro-batch draws the same negatives here
        wanted = labels != IGNORE
        return loss.total(hidden[wanted], table, labels[wanted])

    def value(hidden, labels):
        torch.manual_seed(seed)
        return loss((hidden, table), labels)

    targets = sum(counts)
    loss.targets_per_micro_batch = targets / len(counts)
    average = torch.stack([value(*batch) for batch in batches]).mean()
    expected = torch.stack([total(*batch) for batch in batches]).sum() / max(targets, 1)
    torch.testing.assert_close(average, expected, **CLOSE)


@each_loss
@pytest.mark.parametrize("per_micro_batch", [None, 0.0, 0.5, 7.0])
def test_a_micro_batch_without_targets_gives_zero_with_a_zero_gradient(name, per_micro_batch):
    (hidden, table), labels = outputs_and_labels()
    loss = make(name)
    loss.targets_per_micro_batch = per_micro_batch
    value = loss((hidden, table), torch.full_like(labels, IGNORE))
    assert value.item() == 0.0
    value.backward()
    for tensor in (hidden, table):
        assert tensor.grad is not None
        assert (tensor.grad == 0).all()


@each_loss
def test_bfloat16_outputs_are_scored_in_full_precision(name):
    (hidden, table), labels = outputs_and_labels()
    torch.manual_seed(1)
    value = make(name)((hidden.bfloat16(), table.bfloat16()), labels)
    assert value.dtype == torch.float32
    torch.manual_seed(1)
    # bf16 has 8 bits: scores of size 5 are off by up to 0.4 % each.
    torch.testing.assert_close(value, make(name)((hidden, table), labels), rtol=0.02, atol=0.02)


# --- cross-entropy


def test_cross_entropy_is_torchs():
    (hidden, table), labels = outputs_and_labels()
    ours = CrossEntropy(num_items=ITEMS)((hidden, table), labels)
    theirs = functional.cross_entropy((hidden @ table.T).view(-1, ITEMS + 1), labels.view(-1), ignore_index=IGNORE)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for gradient, reference in zip(
        torch.autograd.grad(ours, (hidden, table)), torch.autograd.grad(theirs, (hidden, table))
    ):
        torch.testing.assert_close(gradient, reference, **CLOSE)


# --- the same in chunks


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, {"rtol": 1e-10, "atol": 1e-12}), (torch.float32, CLOSE)])
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_chunks_give_the_loss_and_gradients_of_the_whole(dtype, close, rows):
    (hidden, table), labels = outputs_and_labels()
    hidden, table = (tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, table))
    loss = ChunkedCrossEntropy(num_items=ITEMS, chunk_mib=rows * (ITEMS + 1) * dtype.itemsize / 2**20)
    ours = 3 * loss((hidden, table), labels)
    theirs = 3 * functional.cross_entropy((hidden @ table.T).view(-1, ITEMS + 1), labels.view(-1), ignore_index=IGNORE)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, **close)
    for gradient, reference in zip(
        torch.autograd.grad(ours, (hidden, table)), torch.autograd.grad(theirs, (hidden, table))
    ):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, reference, **close)


def test_scores_that_overflow_an_exponential_do_not_matter():
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    table = torch.tensor([[0.0], [1.0], [-1.0]])
    loss = ChunkedCrossEntropy(num_items=2).total(hidden, table, torch.tensor([1, 1]))
    assert loss.item() == 600.0
    loss.backward()
    assert hidden.grad.tolist() == [[0.0], [-2.0]]


def test_a_frozen_table_gets_no_gradient():
    (hidden, table), labels = outputs_and_labels()
    loss = ChunkedCrossEntropy(num_items=ITEMS)
    loss((hidden, table.detach()), labels).backward()
    ours, hidden.grad = hidden.grad, None
    CrossEntropy(num_items=ITEMS)((hidden, table.detach()), labels).backward()
    torch.testing.assert_close(ours, hidden.grad, **CLOSE)


def test_bfloat16_gradients_are_added_up_in_full_precision():
    """One target a chunk: 400 rounded sums in turn would lose what is small beside the rest."""
    generator = torch.Generator().manual_seed(0)
    hidden, table = torch.randn(400, D, generator=generator), torch.randn(ITEMS + 1, D, generator=generator)
    targets = torch.randint(1, ITEMS + 1, (400,), generator=generator)
    inputs = [tensor.bfloat16().requires_grad_() for tensor in (hidden, table)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    CrossEntropy(num_items=ITEMS).total(*inputs, targets).backward()
    whole = inputs[1].grad.double()
    inputs[1].grad = None
    ChunkedCrossEntropy(num_items=ITEMS, chunk_mib=1e-6).total(*inputs, targets).backward()
    chunked = inputs[1].grad.double()
    functional.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum").backward()
    reference = exact[1].grad
    assert (chunked - reference).norm() < 1.1 * (whole - reference).norm()


PEAK = """
    import sys
    from pathlib import Path
    import torch
    from recparallel import registry

    torch.set_num_threads(1)
    items, targets, width = 200_000, 512, 16
    if sys.argv[1] == "torch":
        total = lambda hidden, table, targets: torch.nn.functional.cross_entropy(hidden @ table.T, targets, reduction="sum")
    else:
        total = registry.losses.load(sys.argv[1])(num_items=items).total
    hidden, table = torch.randn(targets, width).requires_grad_(), torch.randn(items + 1, width).requires_grad_()

    def peak():
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024

    before = peak()
    total(hidden, table, torch.arange(1, targets + 1)).backward()
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_targets_times_items():
    """512 targets × 200,001 rows of fp32 are 391 MiB, of which torch's softmax holds several at once."""

    def peak(name):
        command = [sys.executable, "-c", textwrap.dedent(PEAK), name]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    whole, chunked = peak("torch"), peak("chunked_cross_entropy")
    assert whole > 2 * 512 * 200_001 * 4
    assert chunked < whole / 4


@pytest.mark.parametrize("chunk_mib", [0, -1.0, math.nan])
def test_a_chunk_without_memory_is_refused(chunk_mib):
    with pytest.raises(ConfigError, match="chunk_mib must be above 0, got"):
        ChunkedCrossEntropy(num_items=ITEMS, chunk_mib=chunk_mib)


# --- sampled softmax


def fixed(negatives, **options):
    """A loss that draws these negatives."""
    loss = SampledSoftmax(num_items=ITEMS, num_negatives=len(negatives), **options)
    loss.sample = lambda: torch.tensor(negatives)
    return loss


def naive(hidden, table, targets, negatives, q):
    """The steps of the docstring, one number at a time."""
    total = 0.0
    for h, target in zip(hidden.tolist(), targets.tolist()):

        def score(row, h=h):
            return sum(a * b for a, b in zip(h, table[row].tolist()))

        kept = [score(j) - math.log(len(negatives) * q[j]) for j in negatives if j != target]
        terms = [score(target), *kept]
        largest = max(terms)
        total += largest + math.log(sum(math.exp(s - largest) for s in terms)) - score(target)
    return total


counts_of_items = st.lists(st.integers(0, 50), min_size=ITEMS + 1, max_size=ITEMS + 1)


@settings(max_examples=examples(50), deadline=None)
@given(
    negatives=st.lists(st.integers(1, ITEMS), min_size=1, max_size=8),
    targets=st.lists(st.integers(1, ITEMS), max_size=6),
    counts=st.none() | counts_of_items,
    power=st.sampled_from([0.0, 0.75, 1.0]),
)
def test_it_is_the_naive_loop(negatives, targets, counts, power):
    generator = torch.Generator().manual_seed(len(targets))
    hidden, table = torch.randn(len(targets), D, generator=generator), torch.randn(ITEMS + 1, D, generator=generator)
    targets = torch.tensor(targets, dtype=torch.int64)
    item_counts = None if counts is None else torch.tensor(counts)
    loss = fixed(negatives, item_counts=item_counts, power=power)
    weights = [0.0] + [1.0 if counts is None else max(c, 1) ** power for c in (counts or [0] * (ITEMS + 1))[1:]]
    q = [w / sum(weights) for w in weights]
    expected = naive(hidden, table, targets, negatives, q)
    torch.testing.assert_close(loss.total(hidden, table, targets), torch.tensor(expected), **CLOSE)


def test_a_negative_that_is_the_target_is_removed_for_that_target_alone():
    hidden, table = torch.randn(2, D), torch.randn(ITEMS + 1, D)
    targets = torch.tensor([3, 5])
    with_hit = fixed([3, 7]).total(hidden[:1], table, targets[:1])
    # The same K, so the same correction; the hit stands for nothing.
    rest = (hidden[0] @ table[7] - math.log(2 / ITEMS)).exp()
    own = (hidden[0] @ table[3]).exp()
    torch.testing.assert_close(with_hit, -(own / (own + rest)).log(), **CLOSE)
    # The other position keeps both negatives.
    both = sum((hidden[1] @ table[j] - math.log(2 / ITEMS)).exp() for j in (3, 7))
    own = (hidden[1] @ table[5]).exp()
    torch.testing.assert_close(
        fixed([3, 7]).total(hidden[1:], table, targets[1:]), -(own / (own + both)).log(), **CLOSE
    )


def test_if_every_negative_is_the_target_nothing_is_left_to_learn():
    hidden = torch.randn(1, D, requires_grad=True)
    loss = fixed([4, 4, 4]).total(hidden, torch.randn(ITEMS + 1, D), torch.tensor([4]))
    assert loss.item() == 0.0
    loss.backward()
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize("popular", [True, False])
def test_with_many_negatives_the_gradient_is_that_of_the_full_softmax(popular):
    """Also for targets that the model already likes, where a corrected target would pull towards itself for ever, and
    for negatives by popularity, where uncorrected ones would bend it.

    The sum over the sample estimates the sum over the other items without bias and with a relative variance of at most
    max(p / q) / K. Its inverse, and so each probability, is off by as much on average; the rest is the noise of a mean
    over R draws, which the draws themselves tell.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, table = torch.randn(6, D, generator=generator), torch.randn(ITEMS + 1, D, generator=generator)
    targets = (hidden @ table[1:].T).argmax(1) + 1
    hidden.requires_grad_()
    scores = hidden @ table[1:].T
    (full,) = torch.autograd.grad(functional.cross_entropy(scores, targets - 1, reduction="sum"), hidden)
    num_negatives, draws = 2048, 100
    loss = SampledSoftmax(
        num_items=ITEMS, num_negatives=num_negatives, item_counts=torch.arange(ITEMS + 1) ** 2 if popular else None
    )
    torch.manual_seed(0)
    gradients = torch.stack([torch.autograd.grad(loss.total(hidden, table, targets), hidden)[0] for _ in range(draws)])
    probabilities = scores.detach().softmax(1)
    bias = (probabilities / loss.q[1:]).max() / num_negatives * (probabilities @ table[1:]).norm()
    noise = (gradients.var(0).sum() / draws).sqrt()
    tolerance = 4 * noise + bias
    assert tolerance < 0.05 * full.norm()  # what a wrong correction does is larger: 0.1 and more
    assert (gradients.mean(0) - full).norm() < tolerance


def test_the_same_seed_draws_the_same_negatives():
    loss = SampledSoftmax(num_items=1000, num_negatives=64)

    def drawn(seed):
        torch.manual_seed(seed)
        return loss.sample()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    torch.manual_seed(1)
    assert not torch.equal(loss.sample(), loss.sample())  # the stream goes on


@pytest.mark.parametrize("counts", [None, [9999, 1, 0, 16, 81]])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_negatives_come_as_often_as_q_says(counts, power):
    """Each row's number of draws is binomial: within five standard deviations of K · q."""
    K = 100_000
    loss = SampledSoftmax(
        num_items=4, num_negatives=K, item_counts=None if counts is None else torch.tensor(counts), power=power
    )
    weights = torch.tensor([0.0, 1, 1, 1, 1] if counts is None else [0.0, 1, 1, 16, 81])
    weights[1:] = weights[1:] ** power
    torch.testing.assert_close(loss.q, weights / weights.sum(), rtol=1e-6, atol=0)
    torch.manual_seed(0)
    drawn = loss.sample()
    assert drawn.dtype == torch.int64
    assert drawn.shape == (K,)
    found = torch.bincount(drawn, minlength=5)
    assert found[0] == 0  # padding is never drawn
    assert len(found) == 5
    deviation = (K * loss.q * (1 - loss.q)).sqrt()
    assert ((found - K * loss.q).abs() <= 5 * deviation).all()


def test_the_ends_of_the_unit_interval_are_items_too(monkeypatch):
    """Zero is drawn once in 2**53 times, and must not be the padding row then."""
    loss = SampledSoftmax(num_items=4, num_negatives=2)
    monkeypatch.setattr(torch, "rand", lambda *size, dtype: torch.tensor([0.0, 1 - 2**-53], dtype=dtype))
    assert loss.sample().tolist() == [1, 4]


def test_an_item_that_nobody_touched_can_be_drawn():
    loss = SampledSoftmax(num_items=3, num_negatives=1, item_counts=torch.tensor([0, 0, 7, 0]), power=1.0)
    assert (loss.q[1:] > 0).all()


def test_a_catalogue_too_large_for_multinomial_can_be_drawn_from():
    """torch.multinomial ends at 2**24 categories."""
    num_items = 2**24 + 5
    loss = SampledSoftmax(num_items=num_items, num_negatives=1000)
    torch.manual_seed(0)
    drawn = loss.sample()
    assert drawn.min() >= 1
    assert num_items / 2 < drawn.max() <= num_items


def test_the_counts_are_not_changed():
    counts = torch.tensor([5, 0, 2, 3])
    SampledSoftmax(num_items=3, num_negatives=1, item_counts=counts)
    assert counts.tolist() == [5, 0, 2, 3]
    floats = torch.tensor([5.0, 1.0, 2.0, 3.0])
    SampledSoftmax(num_items=3, num_negatives=1, item_counts=floats, power=1.0)
    assert floats.tolist() == [5.0, 1.0, 2.0, 3.0]


def test_row_0_is_a_target_like_any_other():
    """A language model's token 0, which is never a negative."""
    (hidden, table), labels = outputs_and_labels()
    labels[0, 0] = 0
    assert make("sampled_softmax")((hidden, table), labels).isfinite()


@pytest.mark.parametrize("num_negatives", [0, -3])
def test_no_negatives_are_refused(num_negatives):
    with pytest.raises(ConfigError, match=f"num_negatives must be at least 1, got {num_negatives}"):
        SampledSoftmax(num_items=ITEMS, num_negatives=num_negatives)


@pytest.mark.parametrize("rows", [ITEMS, ITEMS + 2])
def test_counts_for_another_catalogue_are_refused(rows):
    with pytest.raises(ConfigError, match=rf"item_counts has {rows} rows, expected num_items \+ 1 = {ITEMS + 1}"):
        SampledSoftmax(num_items=ITEMS, item_counts=torch.ones(rows))
