import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.compression.error_feedback import ErrorFeedback
from recparallel.compression.top_k import TopK

dtypes = st.sampled_from([torch.float32, torch.bfloat16])
seeds = st.integers(0, 999)
SIZES = {"a": 3, "b": 5, "c": 1, "d": 8}
NAMES = tuple(SIZES)


def decoded(codec, payload, size):
    total = torch.zeros(size)
    codec.add_decoded(payload, total)
    return total


def residual(feedback, names):
    state = feedback.state_dict()
    return torch.cat([state[name] for name in names])


def send(feedback, codec, flat, names, sizes):
    """One step of one bucket; returns the payload."""
    corrected = feedback.corrected(flat, names, sizes)
    payload = codec.encode(corrected)
    sent = decoded(codec, payload, len(corrected))
    feedback.keep(names, corrected - sent)
    feedback.settle(bool(sent.isfinite().all()))
    return payload


def gradients(seed, dtype=torch.float32):
    """One gradient per parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator).to(dtype) for name, size in SIZES.items()}


def encode(feedback, codec, grads, buckets):
    """Send every bucket; returns what was sent, by parameter."""
    sent = {}
    for names in buckets:
        sizes = [SIZES[name] for name in names]
        payload = send(feedback, codec, torch.cat([grads[name] for name in names]), names, sizes)
        total = decoded(codec, payload, sum(sizes))
        sent.update(zip(names, total.split(sizes)))
    return sent


@st.composite
def bucketings(draw):
    """The parameters in some order, cut into buckets."""
    order = draw(st.permutations(NAMES))
    cuts = sorted(draw(st.sets(st.integers(1, len(order) - 1))))
    return [tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(order)])]


@settings(max_examples=examples(50), deadline=None)
@given(size=st.sampled_from([1, 3, 1001]), dtype=dtypes, ratio=st.floats(0.001, 1.0), steps=st.integers(1, 5))
def test_sent_and_residual_are_the_input_in_every_step(size, dtype, ratio, steps):
    """Bit for bit: an entry is sent as it is and leaves zero behind, or stays as it is."""
    feedback, codec = ErrorFeedback(), TopK(ratio=ratio)
    before = torch.zeros(size)
    for step in range(steps):
        gradient = torch.randn(size, generator=torch.Generator().manual_seed(step)).to(dtype)
        given_gradient = gradient.clone()
        corrected = before + gradient.float()
        payload = send(feedback, codec, gradient, ("w",), [size])
        sent, before = decoded(codec, payload, size), feedback.state_dict()["w"].clone()
        assert before.dtype == torch.float32
        assert payload[0].dtype == torch.float32
        assert torch.equal(sent + before, corrected)
        assert not (sent.bool() & before.bool()).any()
        assert torch.equal(gradient, given_gradient)


@settings(max_examples=examples(30), deadline=None)
@given(ratio=st.floats(0.01, 1.0), seed=seeds)
def test_over_time_nothing_is_lost(ratio, seed):
    """All that was sent plus what is left is all that came in. Whole numbers, so that sums are exact."""
    feedback, codec = ErrorFeedback(), TopK(ratio=ratio)
    generator = torch.Generator().manual_seed(seed)
    came_in, went_out = torch.zeros(17), torch.zeros(17)
    for _ in range(10):
        gradient = torch.randint(-9, 10, (17,), generator=generator).float()
        came_in += gradient
        went_out += decoded(codec, send(feedback, codec, gradient, ("w",), [17]), 17)
    assert torch.equal(went_out + feedback.state_dict()["w"], came_in)


def test_what_is_too_small_is_sent_later():
    feedback, codec = ErrorFeedback(), TopK(ratio=0.5)
    gradient = torch.tensor([3.0, 2.0])
    positions = [send(feedback, codec, gradient, ("w",), [2])[1].item() for _ in range(3)]
    assert positions == [0, 1, 0]  # 3 | 4 against 3 | 6 against 2


def test_a_residual_smaller_than_bfloat16_can_add_is_not_lost():
    feedback, codec = ErrorFeedback(), TopK(ratio=0.5)
    small = torch.tensor([1.0, 2.0**-10], dtype=torch.bfloat16)
    for _ in range(3):
        send(feedback, codec, small, ("w",), [2])
    assert feedback.state_dict()["w"].tolist() == [0.0, 3 * 2.0**-10]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_one_bad_gradient_is_sent_and_does_not_come_back(bad, ratio):
    feedback, codec = ErrorFeedback(), TopK(ratio=ratio)
    sent = decoded(codec, send(feedback, codec, torch.tensor([1.0, bad, bad, 2.0]), ("w",), [4]), 4)
    assert not sent.isfinite().all()  # so that everybody sees it, and can skip the step
    assert feedback.state_dict()["w"].isfinite().all()
    for _ in range(4):
        sent = decoded(codec, send(feedback, codec, torch.ones(4), ("w",), [4]), 4)
        assert sent.isfinite().all()


def test_the_state_is_by_parameter_name():
    feedback, codec = ErrorFeedback(), TopK(ratio=0.5)
    encode(feedback, codec, gradients(0), [("a", "b"), ("c", "d")])
    state = feedback.state_dict()
    assert {name: tensor.numel() for name, tensor in state.items()} == SIZES
    assert ErrorFeedback().state_dict() == {}


@settings(max_examples=examples(40), deadline=None)
@given(before=bucketings(), after=bucketings(), seed=seeds, dtype=dtypes)
def test_a_stored_state_goes_on_in_other_buckets(before, after, seed, dtype):
    """By name, whatever the buckets: nothing that was left out is lost or given to another parameter."""
    old, codec = ErrorFeedback(), TopK(ratio=0.4)
    encode(old, codec, gradients(seed, dtype), before)
    stored = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    new, codec = ErrorFeedback(), TopK(ratio=0.4)
    new.load_state_dict(stored)
    assert new.state_dict().keys() == stored.keys()
    second = gradients(seed + 1, dtype)
    sent = encode(new, codec, second, after)
    left = new.state_dict()
    for name in NAMES:
        assert torch.equal(sent[name] + left[name], stored[name] + second[name].float())
    assert {name: tensor.numel() for name, tensor in left.items()} == SIZES


@settings(max_examples=examples(40), deadline=None)
@given(layouts=st.lists(bucketings(), min_size=2, max_size=4), seed=seeds)
def test_buckets_that_are_cut_anew_in_mid_training_keep_every_residual(layouts, seed):
    """PyTorch PR 48867: buckets are rebuilt after the first step; each parameter must find its residual again, also
    one whose old bucket was broken up by a bucket that came first."""
    feedback, codec = ErrorFeedback(), TopK(ratio=0.3)
    left = {name: torch.zeros(size) for name, size in SIZES.items()}
    for step, buckets in enumerate(layouts):
        grads = gradients(seed + step)
        sent = encode(feedback, codec, grads, buckets)
        state = feedback.state_dict()
        assert state.keys() == SIZES.keys()
        for name in NAMES:
            assert torch.equal(sent[name] + state[name], left[name] + grads[name])
            left[name] = state[name].clone()


def test_a_parameter_without_a_residual_joins_a_bucket():
    feedback, codec = ErrorFeedback(), TopK(ratio=0.5)
    grads = gradients(0)
    encode(feedback, codec, grads, [("a",)])
    left = feedback.state_dict()["a"].clone()
    sent = encode(feedback, codec, grads, [("a", "b")])
    state = feedback.state_dict()
    assert torch.equal(sent["a"] + state["a"], left + grads["a"])
    assert torch.equal(sent["b"] + state["b"], grads["b"])


def test_what_waits_for_its_bucket_is_in_the_state_too():
    """A checkpoint between two buckets, or of parameters that got no gradient, loses nothing."""
    feedback, codec = ErrorFeedback(), TopK(ratio=0.5)
    encode(feedback, codec, gradients(0), [NAMES])
    before = {name: tensor.clone() for name, tensor in feedback.state_dict().items()}
    encode(feedback, codec, gradients(1), [("b",)])
    after = feedback.state_dict()
    for name in ("a", "c", "d"):
        assert torch.equal(after[name], before[name])


def test_buckets_that_are_cut_anew_between_two_micro_batches_of_a_step():
    """What waits is what the next micro-batch starts from, also for a parameter that comes in another bucket, or in none."""
    feedback, ones = ErrorFeedback(), {"a": torch.ones(3), "b": torch.ones(5)}
    for made, left in ((True, 5.0), (False, 5.0)):
        first = feedback.corrected(torch.cat([ones["a"], ones["b"]]), ("a", "b"), [3, 5])
        feedback.keep(("a", "b"), torch.full((8,), 4.0))
        second = feedback.corrected(ones["a"], ("a",), [3])
        assert second.tolist() == [5.0] * 3
        feedback.keep(("a",), torch.full((3,), left))
        feedback.settle(made)
        state = feedback.state_dict()
        assert state["a"].tolist() == [5.0] * 3
        assert state["b"].tolist() == [4.0] * 5
    assert first.tolist() == [6.0] * 3 + [5.0] * 5


def test_a_loaded_state_is_a_copy():
    stored = {"w": torch.tensor([1.0, 2.0])}
    feedback, codec = ErrorFeedback(), TopK(ratio=0.5)
    feedback.load_state_dict(stored)
    send(feedback, codec, torch.tensor([5.0, 5.0]), ("w",), [2])
    assert stored["w"].tolist() == [1.0, 2.0]


def test_loading_replaces_what_was_there():
    feedback, codec = ErrorFeedback(), TopK(ratio=0.5)
    encode(feedback, codec, gradients(0), [NAMES])
    feedback.load_state_dict({"a": torch.zeros(3)})
    assert {name: tensor.tolist() for name, tensor in feedback.state_dict().items()} == {"a": [0.0, 0.0, 0.0]}


def test_sizes_that_do_not_add_up_are_refused():
    with pytest.raises(RuntimeError):
        send(ErrorFeedback(), TopK(), torch.ones(5), ("a", "b"), [2, 2])
