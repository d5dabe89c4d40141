import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from recparallel import build_recommender
from recparallel.models.layer import Layer
from recparallel.models.layers import DecoderBlock
from recparallel.plan import Profile
from recparallel.profiling import layers as layers_module
from recparallel.profiling import passes as passes_module
from recparallel.profiling.layers import profile_layers

B, L, D, V = 2, 6, 16, 11
SMALL = {"vocab_size": 8, "bos_token_id": None, "eos_token_id": None}
ROTARY = {"hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, **SMALL}
FAMILIES = {
    "llama": ROTARY,
    "mistral": {**ROTARY, "sliding_window": 3, "num_key_value_heads": 2},
    "qwen2": {**ROTARY, "num_key_value_heads": 2},
    "qwen3": {**ROTARY, "num_key_value_heads": 2, "head_dim": 8},
    "phi3": {**ROTARY, "num_key_value_heads": 2, "pad_token_id": None},
    "gpt_neox": ROTARY,
    "opt": {**{k: v for k, v in ROTARY.items() if k != "intermediate_size"}, "ffn_dim": 24, "pad_token_id": None},
    "gpt2": {"n_embd": D, "n_layer": 3, "n_head": 2, "n_positions": L, **SMALL},
}


def recommender(family="llama", **options):
    return build_recommender({"model_type": family, **FAMILIES[family]}, num_items=V - 1, **options)


def sample():
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, V, (B, L + 1), generator=generator)
    return items[:, :-1].clone(), items[:, 1:].clone()


def profile(rec, **options):
    return profile_layers(rec.layers, rec.loss_fn, sample(), **{"repeats": 1, "warmup": 0, **options})


def costs(profile):
    return {layer.name: layer for layer in profile.layers}


class Clock:
    """Stands for the module ``time``: goes on when it is told to."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """The clock that layers are timed with. Tests use powers of two, so sums are exact."""
    clock = Clock()
    for module in (layers_module, passes_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Scale(nn.Module):
    """One weight; counts how often it is built and run."""

    built = ran = 0

    def __init__(self):
        super().__init__()
        type(self).built += 1
        self.weight = nn.Parameter(torch.rand(1))
        self.noise = nn.Dropout(0.5)

    def forward(self, x):
        type(self).ran += 1
        return self.noise(x.float()) * self.weight


@pytest.fixture
def scale():
    """A fresh class, so that tests do not count each other's."""
    return type("CountedScale", (Scale,), {"built": 0, "ran": 0})


def profile_scales(layers, loss_fn=lambda x, labels: (x * labels).sum(), **options):
    return profile_layers(layers, loss_fn, (torch.ones(B, L), torch.ones(B, L)), **{"repeats": 1, **options})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_whole(family, tied):
    rec = recommender(family, tied=tied, dropout=0.5)
    profiled = profile(rec)
    assert [layer.name for layer in profiled.layers] == [layer.name for layer in rec.layers]
    assert (profiled.micro_batch, profiled.sequence_length, profiled.dtype) == (B, L, "float32")
    assert Profile.model_validate_json(profiled.model_dump_json()) == profiled
    for layer in profiled.layers:
        assert layer.forward_seconds > 0
        assert layer.backward_seconds > 0
        assert layer.activation_bytes > 0
        assert layer.parameter_bytes == 4 * layer.num_parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_table_says_how_many_of_its_rows_a_micro_batch_touches(dtype):
    negatives = 20
    rec = build_recommender(
        {"model_type": "llama", **ROTARY},
        num_items=999,
        loss="sampled_softmax",
        loss_options={"num_negatives": negatives},
    )
    embedding, *blocks, head = profile(rec, dtype=dtype).layers
    inputs, labels = sample()
    assert embedding.touched_share == pytest.approx(len(inputs.unique()) / 1000)
    assert len(labels.unique()) < 1000 * head.touched_share <= len(labels.unique()) + negatives + 1e-3
    assert {layer.touched_share for layer in blocks} == {1.0}


def test_a_table_of_its_own_exchanges_nothing_and_is_not_searched():
    assert {layer.touched_share for layer in profile(recommender(tied=False)).layers} == {1.0}


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax"])
def test_the_random_state_is_left_as_it_was(loss):
    rec = recommender(dropout=0.5, loss=loss)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    profile(rec)
    assert torch.equal(torch.rand(4), expected)


def test_the_given_layers_and_loss_are_left_as_they_were():
    rec = recommender()
    layers, kwargs, loss = rec.layers, [dict(layer.kwargs) for layer in rec.layers], dict(vars(rec.loss_fn))
    inputs, labels = sample()
    profile_layers(layers, rec.loss_fn, (inputs, labels), repeats=1)
    assert [layer.kwargs for layer in layers] == kwargs
    assert vars(rec.loss_fn) == loss
    assert torch.equal(inputs, sample()[0])
    assert torch.equal(labels, sample()[1])
    assert inputs.grad is None


def test_the_same_seed_gives_the_same_weights_after_a_measurement():
    rec = recommender()

    def first_weights():
        torch.manual_seed(5)
        return rec.layers[0].build().weight

    before = first_weights()
    profile(rec)
    assert torch.equal(first_weights(), before)


@pytest.mark.parametrize("grad", [True, False])
def test_a_backward_pass_is_measured_and_the_callers_mode_is_kept(grad):
    with torch.set_grad_enabled(grad):
        assert all(layer.activation_bytes > 0 for layer in profile(recommender()).layers)  # kept for a backward pass
        assert torch.is_grad_enabled() == grad


def test_layers_that_are_alike_are_measured_once_and_cost_the_same(scale):
    layers = [
        Layer("first", scale),
        *(Layer(f"block {i}", scale, alike="full") for i in range(5)),
        Layer("last", scale),
    ]
    profiled = costs(profile_scales(layers, warmup=0))
    assert scale.built == scale.ran == 3
    assert list(profiled) == [layer.name for layer in layers]
    blocks = [profiled[f"block {i}"].model_dump(exclude={"name"}) for i in range(5)]
    assert blocks == [blocks[0]] * 5


def test_blocks_of_another_kind_of_attention_are_measured_apart():
    mixed = {**FAMILIES["qwen2"], "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    rec = build_recommender({"model_type": "qwen2", **mixed}, num_items=V - 1)
    assert [layer.alike for layer in rec.layers[1:4]] == ["full_attention", "sliding_attention", "sliding_attention"]
    built = []

    class Counted(DecoderBlock):
        def __init__(self, **kwargs):
            built.append(kwargs["index"])
            super().__init__(**kwargs)

    layers = [replace(layer, module_class=Counted) if layer.alike else layer for layer in rec.layers]
    _, sliding, same = profile_layers(layers, rec.loss_fn, sample(), repeats=1).layers[1:4]
    assert built == [0, 1]
    assert sliding.model_dump(exclude={"name"}) == same.model_dump(exclude={"name"})


class SlowLoss(torch.autograd.Function):
    """Takes half a second forward and two backward."""

    @staticmethod
    def forward(ctx, x, clock):
        ctx.clock, ctx.shape = clock, x.shape
        clock.sleep(0.5)
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.sleep(2.0)
        return gradient.expand(ctx.shape), None


def test_the_loss_belongs_to_the_last_layer(scale, clock):
    profiled = costs(
        profile_scales([Layer("first", scale), Layer("last", scale)], lambda x, labels: SlowLoss.apply(x, clock))
    )
    assert (profiled["first"].forward_seconds, profiled["first"].backward_seconds) == (0.0, 0.0)
    assert (profiled["last"].forward_seconds, profiled["last"].backward_seconds) == (0.5, 2.0)
    assert profiled["last"].boundary_bytes == 4  # a loss is one number


def test_the_loss_is_measured_even_if_the_last_layer_is_like_others(scale, clock):
    layers = [Layer(f"block {i}", scale, alike="full") for i in range(3)]
    profiled = profile_scales(layers, lambda x, labels: SlowLoss.apply(x, clock))
    assert [layer.forward_seconds for layer in profiled.layers] == [0.0, 0.0, 0.5]
    assert scale.built == 2


def test_the_labels_reach_the_loss(scale):
    seen = []

    def loss(x, labels):
        seen.append(labels)
        return x.sum()

    labels = torch.full((B, L), 7.0)
    profile_layers([Layer("only", scale)], loss, (torch.ones(B, L), labels), repeats=1, warmup=0)
    assert torch.equal(seen[0], labels)
    assert len(seen) == 1


@pytest.mark.parametrize(("repeats", "warmup"), [(1, 0), (3, 1), (2, 2)])
def test_every_layer_runs_warmup_and_repeats(scale, repeats, warmup):
    profile_scales([Layer("a", scale), Layer("b", scale)], repeats=repeats, warmup=warmup)
    assert scale.built == 2
    assert scale.ran == 2 * (repeats + warmup)


def test_the_warmup_is_not_counted_and_the_median_is_taken(clock):
    waits = iter([64.0, 0.0, 8.0, 1.0])  # a warm-up, then three repeats

    class Waits(Scale):
        def forward(self, x):
            clock.sleep(next(waits))
            return x * self.weight

    (cost,) = profile_scales([Layer("only", Waits)], repeats=3, warmup=1).layers
    assert cost.forward_seconds == 1.0


def test_forward_and_backward_are_timed_apart(clock):
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            clock.sleep(1.0)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            clock.sleep(4.0)
            return gradient

    class Layered(nn.Module):
        def forward(self, x):
            return Waits.apply(x)

    profiled = costs(profile_scales([Layer("middle", Layered), Layer("last", Scale)], repeats=3))
    assert (profiled["middle"].forward_seconds, profiled["middle"].backward_seconds) == (1.0, 4.0)
    assert (profiled["last"].forward_seconds, profiled["last"].backward_seconds) == (0.0, 0.0)


def test_parameters_and_bytes_of_a_known_model():
    profiled = costs(profile(recommender(tied=False)))
    block = 4 * D * D + 3 * D * 24 + 2 * D  # q, k, v, o; gate, up, down; two norms
    expected = {"embedding": V * D, "blocks.0": block, "blocks.1": block, "blocks.2": block, "norm": D, "head": V * D}
    assert {name: cost.num_parameters for name, cost in profiled.items()} == expected
    assert {name: cost.parameter_bytes for name, cost in profiled.items()} == {n: 4 * p for n, p in expected.items()}


def test_what_crosses_a_boundary_is_one_hidden_state():
    profiled = costs(profile(recommender()))
    assert profiled.pop("head").boundary_bytes == 4
    assert {cost.boundary_bytes for cost in profiled.values()} == {B * L * D * 4}


def test_in_half_precision_everything_has_half_the_size():
    full, half = profile(recommender()), profile(recommender(), dtype=torch.bfloat16)
    assert half.dtype == "bfloat16"
    for ours, theirs in zip(half.layers, full.layers):
        assert ours.parameter_bytes * 2 == theirs.parameter_bytes
        assert ours.num_parameters == theirs.num_parameters
    for ours, theirs in zip(half.layers[:-1], full.layers[:-1]):
        assert ours.boundary_bytes * 2 == theirs.boundary_bytes


def test_kept_activations_are_counted_without_parameters_and_once():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self, x):
            return (x * x).sum() * self.weight

    profiled = profile_scales([Layer("squares", Squares), Layer("last", Scale)], lambda x, labels: x.sum())
    # x, once although it is both factors, and the scalar; the weight, which is kept too, is no activation.
    assert profiled.layers[0].activation_bytes == B * L * 4 + 4


def test_a_tied_layer_is_built_once_and_its_second_place_holds_the_same_weights(scale):
    calls = []

    def second_place(module, x):
        calls.append(module)
        return x * module.weight

    layers = [
        Layer("embedding", scale, tie="table"),
        Layer("block", nn.Identity),
        Layer("head", scale, tie="table", forward=second_place),
    ]
    profiled = costs(profile_scales(layers, warmup=0))
    assert scale.built == 1
    assert scale.ran == 1  # the head ran its own forward, not the module's
    assert len(calls) == 1
    assert profiled["head"].num_parameters == profiled["embedding"].num_parameters == 1


def test_both_places_of_a_tied_table_count_it():
    """Each of the two stages holds the whole table."""
    profiled = costs(profile(recommender(tied=True)))
    assert profiled["head"].num_parameters == profiled["embedding"].num_parameters == V * D


def test_the_progress_bar_sees_every_layer(scale):
    seen = []

    def progress(layers):
        for layer in layers:
            seen.append(layer.name)
            yield layer

    layers = [Layer("a", scale), Layer("b", scale, alike="x"), Layer("c", scale, alike="x"), Layer("d", scale)]
    assert len(profile_scales(layers, progress=progress).layers) == 4
    assert seen == ["a", "b", "c", "d"]


def test_layers_are_dropped_after_their_turn(scale):
    """One layer in memory at a time, beside tied ones."""
    alive = []

    class Watched(Scale):
        def __init__(self):
            alive.append(sum(ref() is not None for ref in refs))
            super().__init__()
            refs.append(weakref.ref(self))

    refs = []
    profile_scales([Layer(str(i), Watched) for i in range(4)])
    # While a layer is built, the one before it may still be held, not more.
    assert max(alive) <= 1
    assert not any(ref() for ref in refs)
