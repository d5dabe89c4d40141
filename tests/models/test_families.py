"""Taken apart and put together again, every family computes what the Hugging Face model computes."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, GPT2Config
from transformers.utils.logging import disable_progress_bar

from recparallel import build_recommender
from recparallel.errors import ConfigError, UnknownNameError
from recparallel.models.layer import Layer
from recparallel.models.layers import DecoderBlock, ItemEmbedding, NextItemHead, scores_at
from recparallel.models.trunk import Trunk

B, L, V, ITEMS = 2, 9, 13, 20
TOKENS = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
ROTARY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    **TOKENS,
}
HIDDEN = {key: ROTARY[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
FAMILIES = {
    "llama": ("llama", ROTARY),
    "mistral": ("mistral", {**ROTARY, "sliding_window": 3}),  # much less than the L positions
    "qwen2": ("qwen2", ROTARY),
    "qwen2 mixed": ("qwen2", {**ROTARY, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**ROTARY, "head_dim": 8}),
    "phi3": ("phi3", {**ROTARY, "sliding_window": 3}),
    "gemma2": ("gemma2", {**ROTARY, "head_dim": 8, "sliding_window": 3, "final_logit_softcapping": None}),
    "gpt_neox": ("gpt_neox", {**HIDDEN, "intermediate_size": 24, **TOKENS}),
    "opt": ("opt", {**HIDDEN, "ffn_dim": 24, "max_position_embeddings": 12, "dropout": 0.0, **TOKENS}),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, **NO_DROPOUT, **TOKENS}),
}
POSITIONS = ("gpt2", "opt")
"""Families with a table of positions, and without a rotary one."""
CASES = [(family, tied) for family in FAMILIES for tied in (True, False)]

# Both sides run the same kernels on the same numbers; only the last product may be summed in another order, 16 terms
# of size 1 with 1.2e-7 of rounding each.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@dataclass
class Case:
    """A Hugging Face model with weights large enough that every part matters, and its folder."""

    hf: Any
    folder: Any

    @property
    def base(self):
        return getattr(self.hf, self.hf.base_model_prefix)


def std_of(family, std):
    """The option that sets the standard deviation of initial weights."""
    return {"init_std" if family == "opt" else "initializer_range": std}


def config_of(family, *, tied=True, **changes):
    model_type, options = FAMILIES[family]
    return AutoConfig.for_model(model_type, **options, tie_word_embeddings=tied, **changes)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    disable_progress_bar()
    made = {}

    def make(family, tied):
        if (family, tied) not in made:
            torch.manual_seed(0)
            hf = AutoModelForCausalLM.from_config(config_of(family, tied=tied, **std_of(family, 0.4)))
            with torch.no_grad():
                for name, p in hf.named_parameters():
                    if p.dim() == 1:  # norms and biases, which begin as ones and zeros
                        p.add_(torch.randn_like(p) * 0.2)
                    assert p.std() > 0.05, name
            folder = tmp_path_factory.mktemp(f"{family} {tied}".replace(" ", "_"))
            hf.save_pretrained(folder)
            made[family, tied] = Case(hf.eval(), folder)
        return made[family, tied]

    return make


def assemble(rec):
    """Built modules in order, tied layers shared, as an engine does it."""
    shared, modules = {}, []
    for layer in rec.layers:
        module = shared.get(layer.tie) or layer.build()
        if layer.tie:
            shared[layer.tie] = module
        modules.append(module.eval())
    return modules


def run(rec, modules, ids):
    x = ids
    for layer, module in zip(rec.layers, modules):
        x = layer.run(module, x)
    return x


def logits_of(rec, modules, ids):
    hidden, table = run(rec, modules, ids)
    return hidden @ table.T


def token_ids():
    return torch.randint(1, V, (B, L), generator=torch.Generator().manual_seed(1))


def named_parameters(rec, modules):
    """Our parameters by their names in the Hugging Face model, each once."""
    trunk = Trunk.of(rec.config)
    found = {}
    for layer, module in zip(rec.layers, modules):
        if layer.name == "head" and layer.tie:
            continue
        if layer.name.startswith("blocks."):
            path, part = f"{trunk.blocks}.{layer.name.removeprefix('blocks.')}", module.block
        else:
            path, part = layer.kwargs["path"], module.part
        inner = {id(p) for p in part.parameters()}
        assert inner == {id(p) for p in module.parameters()}  # no weights beside the family's own
        found.update({f"{path}.{name}": p for name, p in part.named_parameters()})
    return found


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_logits_are_the_models_own(case, family, tied):
    theirs = case(family, tied)
    rec = build_recommender(theirs.folder, num_items=None)
    assert rec.tied == tied
    assert rec.num_items == V - 1
    ids = token_ids()
    with torch.no_grad():
        expected = theirs.hf(ids).logits
        torch.testing.assert_close(logits_of(rec, assemble(rec), ids), expected, **CLOSE)
    assert expected.std() > 0.1  # far above the tolerance


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_loss_and_every_gradient_are_the_models_own(case, family, tied):
    theirs = case(family, tied)
    rec = build_recommender(theirs.folder, num_items=None)
    modules = assemble(rec)
    ids = token_ids()
    wanted = ids.clone()
    wanted[1, 5:] = -100  # a ragged batch
    theirs.hf.zero_grad()
    expected = theirs.hf(ids, labels=wanted).loss
    expected.backward()
    labels = torch.cat([wanted[:, 1:], torch.full((B, 1), -100)], dim=1)
    loss = rec.loss_fn(run(rec, modules, ids), labels)
    loss.backward()
    torch.testing.assert_close(loss, expected, **CLOSE)
    ours, reference = named_parameters(rec, modules), dict(theirs.hf.named_parameters())
    assert set(ours) == set(reference)
    for name, parameter in ours.items():
        # Sums over 18 positions of products of size 1, in another order.
        torch.testing.assert_close(
            parameter.grad, reference[name].grad, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        if family == "opt" and name.endswith(
            "k_proj.bias"
        ):  # it moves all scores of a query alike: softmax sees nothing
            assert reference[name].grad.abs().max() < 1e-5
        else:
            assert reference[name].grad.abs().max() > 1e-3, f"{name} has no gradient to compare"


@pytest.mark.parametrize("family", ["mistral", "qwen2 mixed", "phi3", "gemma2"])
def test_the_sliding_window_of_these_cases_matters(case, family):
    """Otherwise the comparison above would not notice a mask that is missing."""
    theirs = case(family, True)
    wide = AutoModelForCausalLM.from_pretrained(theirs.folder, sliding_window=100).eval()
    ids = token_ids()
    with torch.no_grad():
        difference = (theirs.hf(ids).logits - wide(ids).logits).abs()
    assert difference[:, 3:].max() > 0.01
    assert difference[:, :3].max() < 1e-5  # the window holds the first three positions whole


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_changes_nothing_before_it(case, family):
    theirs = case(family, True)
    rec = build_recommender(theirs.folder, num_items=None)
    ids, length = token_ids(), 6
    padded = ids.clone()
    padded[:, length:] = 0
    mask = (torch.arange(L) < length).long().expand(B, L)
    with torch.no_grad():
        expected = theirs.hf(padded, attention_mask=mask).logits[:, :length]
        torch.testing.assert_close(logits_of(rec, assemble(rec), padded)[:, :length], expected, **CLOSE)


@pytest.mark.parametrize(
    ("family", "attention"),
    # Gemma 2 caps its attention scores, which sdpa cannot.
    [(f, a) for f in FAMILIES for a in ("eager", "sdpa") if (f, a) != ("gemma2", "sdpa")],
)
def test_the_attention_that_is_asked_for_runs_and_gives_the_same(case, family, attention):
    theirs = case(family, True)
    config = AutoConfig.from_pretrained(theirs.folder, attn_implementation=attention)
    rec = build_recommender(config, num_items=7)
    blocks = [module for module in assemble(rec) if isinstance(module, DecoderBlock)]
    assert {block.block.config._attn_implementation for block in blocks if hasattr(block.block, "config")} <= {
        attention
    }
    attentions = [m for block in blocks for m in block.modules() if type(m).__name__.endswith("Attention")]
    assert {module.config._attn_implementation for module in attentions} == {attention}
    with torch.no_grad():
        for ours, block in zip(blocks, theirs.hf.get_submodule(Trunk.of(config).blocks)):
            ours.block.load_state_dict(block.state_dict())
        x = torch.randn(B, L, 16, generator=torch.Generator().manual_seed(2))
        expected = x
        for block in assemble(build_recommender(theirs.folder, num_items=7)):
            expected = block(expected) if isinstance(block, DecoderBlock) else expected
        for block in blocks:
            x = block(x)
    # Another kernel: softmax and sums over 16 terms in another order.
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_over_items_the_trunk_is_the_models_own(case, family):
    theirs = case(family, False)
    rec = build_recommender(theirs.folder, num_items=ITEMS)
    modules = assemble(rec)
    assert isinstance(modules[0], ItemEmbedding)
    assert modules[0].weight.shape == (ITEMS + 1, 16)
    ids = torch.randint(0, ITEMS + 1, (B, L), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        hidden, table = run(rec, modules, ids)
        vectors = modules[0].weight[ids] * (4.0 if family == "gemma2" else 1.0)  # the root of the width
        expected = theirs.base(inputs_embeds=vectors).last_hidden_state
    torch.testing.assert_close(hidden, expected, **CLOSE)
    assert table.data_ptr() == modules[0].weight.data_ptr()  # a view: no second table


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_its_own_is_not_tied(family):
    rec = build_recommender(config_of(family), num_items=ITEMS, tied=False)
    modules = assemble(rec)
    assert isinstance(modules[-1], NextItemHead)
    assert not rec.tied
    assert {layer.tie for layer in rec.layers} == {None}
    assert modules[-1].weight.shape == (ITEMS + 1, 16)
    assert not torch.equal(modules[-1].weight, modules[0].weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_have_readable_unique_names(family):
    names = [layer.name for layer in build_recommender(config_of(family), num_items=ITEMS).layers]
    positions = ["positions"] if family in POSITIONS else []
    assert names == ["embedding", *positions, "blocks.0", "blocks.1", "norm", "head"]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_weights_the_family_initializes(family):
    """Matrices are drawn with the config's standard deviation, norms are ones, biases zeros, as in the family's own
    ``_init_weights``."""
    wide = {"n_embd": 64} if family == "gpt2" else {"hidden_size": 64, "intermediate_size": 64, "ffn_dim": 64}
    model_type, options = FAMILIES[family]
    torch.manual_seed(0)
    rec = build_recommender(
        {"model_type": model_type, **options, **wide, **std_of(family, 0.5)}, num_items=200, tied=False
    )
    modules = assemble(rec)
    for module in modules:
        for name, p in module.named_parameters():
            if p.dim() == 2:
                # GPT-2 scales what is added to the residual stream by one over the square root of the number of adds.
                std = 0.5 / math.sqrt(2 * 2) if "c_proj" in name else 0.5
                # Five standard errors: a sample of n has a relative one of 1 / sqrt(2 n).
                assert p.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * p.numel())), name
            else:
                zero = (
                    name.endswith("bias") or family == "gemma2"
                )  # whose norms multiply by one more than their weights
                expected = torch.zeros_like(p) if zero else torch.ones_like(p)
                torch.testing.assert_close(p.detach(), expected, rtol=0, atol=0)


def test_the_same_seed_builds_the_same_layer_and_another_one_another():
    layer = build_recommender(config_of("llama"), num_items=ITEMS).layers[1]

    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in layer.build().parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in POSITIONS])
def test_a_cast_leaves_the_rotary_frequencies_in_full_precision(case, family):
    theirs = case(family, True)
    rec = build_recommender(theirs.folder, num_items=ITEMS)
    block = next(layer for layer in rec.layers if layer.module_class.__name__ == "DecoderBlock").build()
    block.to(torch.bfloat16)
    assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
    frequencies = block.rotary.inv_freq
    assert frequencies.dtype == torch.float32
    torch.testing.assert_close(frequencies, theirs.base.rotary_emb.inv_freq, rtol=0, atol=0)


# --- dropout


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_number_sets_every_dropout(family, dropout):
    model_type, options = FAMILIES[family]
    # The own default of GPT-2 and OPT is 0.1.
    options = {key: value for key, value in options.items() if key not in (*NO_DROPOUT, "dropout")}
    rec = build_recommender({"model_type": model_type, **options}, num_items=ITEMS, dropout=dropout)
    modules = assemble(rec)
    rates = {m.p for module in modules for m in module.modules() if isinstance(m, nn.Dropout)}
    assert rates == {dropout}
    attention = [m.attention_dropout for module in modules for m in module.modules() if hasattr(m, "attention_dropout")]
    assert set(attention) <= {dropout}
    assert family in POSITIONS or len(attention) == 2
    plain = [
        m.dropout for module in modules for m in module.modules() if isinstance(getattr(m, "dropout", None), float)
    ]
    assert set(plain) <= {dropout}
    assert len(plain) == (4 if family == "opt" else 0)  # two blocks and their attention
    ids = torch.randint(1, ITEMS, (B, L))
    for module in modules:
        module.train()
    with torch.no_grad():
        twice = [run(rec, modules, ids)[0] for _ in range(2)]
    assert torch.equal(*twice) == (dropout == 0.0)


# --- refusals


def known_families():
    return "gemma2, gpt2, gpt_neox, llama, mistral, opt, phi3, qwen2, qwen3"


def test_an_unknown_family_is_refused_with_the_known_ones_and_the_nearest():
    with pytest.raises(UnknownNameError) as raised:
        build_recommender({"model_type": "lama"}, num_items=5)
    message = str(raised.value)
    assert message.startswith("unknown model family 'lama'")
    assert f"known are: {known_families()}." in message
    assert message.endswith("Did you mean 'llama'?")
    assert "model_type" in message


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_family_that_transformers_knows_and_we_do_not_is_refused(tmp_path, as_folder):
    config = BertConfig(num_hidden_layers=1)
    if as_folder:
        config.save_pretrained(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown model family 'bert'") as raised:
        build_recommender(tmp_path if as_folder else config, num_items=5)
    assert known_families() in str(raised.value)


def test_a_config_without_a_family_is_refused():
    with pytest.raises(UnknownNameError, match="unknown model family ''"):
        build_recommender({"hidden_size": 8}, num_items=5)


def test_a_family_without_a_plan_says_what_to_write():
    with pytest.raises(ConfigError, match=r"GPT2Config has no base_model_pp_plan; write models/families/"):
        Trunk(GPT2Config(n_embd=4, n_layer=1, n_head=1))


def test_gpt2_refuses_histories_that_are_too_long(case):
    rec = build_recommender(case("gpt2", True).folder, num_items=ITEMS)
    modules = assemble(rec)
    with pytest.raises(ConfigError, match=r"histories of 13 positions, but this gpt2 has n_positions=12"):
        run(rec, modules, torch.ones(1, 13, dtype=torch.int64))
    run(rec, modules, torch.ones(1, 12, dtype=torch.int64))


def test_opt_refuses_histories_that_are_too_long():
    rec = build_recommender(config_of("opt"), num_items=ITEMS)
    with pytest.raises(ConfigError, match=r"histories of 13 positions, but this opt has max_position_embeddings=12"):
        run(rec, assemble(rec), torch.ones(1, 13, dtype=torch.int64))


@pytest.mark.parametrize(
    ("option", "value"), [("word_embed_proj_dim", 8), ("do_layer_norm_before", False), ("layerdrop", 0.1)]
)
def test_variants_of_opt_with_other_parts_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"OPT with {option}={value} is not supported"):
        build_recommender(config_of("opt", **{option: value}), num_items=ITEMS)


def test_the_token_vectors_of_gpt_neox_have_a_dropout():
    rec = build_recommender(config_of("gpt_neox", hidden_dropout=0.3), num_items=None)
    assert assemble(rec)[0].dropout.p == 0.3


def test_scores_that_a_head_would_bend_are_refused_or_left_alone():
    model_type, options = FAMILIES["gemma2"]
    bent = AutoConfig.for_model(model_type, **{**options, "final_logit_softcapping": 30.0})
    with pytest.raises(ConfigError, match=r"final_logit_softcapping=30\.0 is not supported; set it to null"):
        build_recommender(bent, num_items=None)
    assert build_recommender(bent, num_items=ITEMS).config.final_logit_softcapping is None
    assert bent.final_logit_softcapping == 30.0


def test_a_recommender_knows_how_long_its_histories_may_be():
    assert build_recommender(config_of("gpt2"), num_items=ITEMS).max_length == 12
    assert build_recommender(config_of("opt"), num_items=ITEMS).max_length == 12
    assert build_recommender(config_of("llama"), num_items=ITEMS).max_length is None


@pytest.mark.parametrize("num_items", [0, -1])
def test_a_catalogue_has_at_least_one_item(num_items):
    with pytest.raises(ConfigError, match=f"num_items must be at least 1, got {num_items}"):
        build_recommender(config_of("llama"), num_items=num_items)


def test_what_blocks_add_is_dropped_while_training():
    rec = build_recommender(config_of("llama"), num_items=ITEMS, block_dropout=0.4)
    block = rec.layers[1].build()
    hidden = torch.randn(2, 5, block.config.hidden_size)
    added = block.eval()(hidden) - hidden
    dropped = block.train()(hidden) - hidden
    kept = dropped.abs() > 1e-7
    assert 0.4 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropped[kept], added[kept] / 0.6, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [1.0, -0.1])
def test_dropout_is_a_share_below_one(dropout):
    with pytest.raises(ConfigError, match=rf"dropout must lie in \[0, 1\), got {dropout}"):
        build_recommender(config_of("llama"), num_items=5, dropout=dropout)


def test_an_unknown_loss_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown loss 'cross-entropy'.*Did you mean 'cross_entropy'"):
        build_recommender(config_of("llama"), num_items=5, loss="cross-entropy")


# --- ways to name a model


def test_a_dict_a_config_a_json_file_and_a_folder_name_the_same_model(case, tmp_path):
    theirs = case("llama", True)
    config = config_of("llama", initializer_range=0.4)
    path = tmp_path / "architecture.json"
    path.write_text(config.to_json_string(use_diff=False))
    ways = [{"model_type": "llama", **ROTARY, "initializer_range": 0.4}, config, str(path), path, theirs.folder]
    trunks = []
    for model in ways:
        rec = build_recommender(model, num_items=ITEMS, pretrained=False)
        torch.manual_seed(0)
        trunks.append(torch.cat([p.flatten() for p in rec.layers[1].build().parameters()]))
    assert all(torch.equal(trunk, trunks[0]) for trunk in trunks)


def test_a_given_config_is_left_as_it_was():
    config = config_of("gpt2", tied=True)
    before = config.to_dict()
    build_recommender(config, num_items=ITEMS, tied=False, dropout=0.5)
    assert config.to_dict() == before


# --- the small parts


def test_scores_are_those_of_one_position_of_each_sequence():
    hidden, table, positions = torch.randn(3, 5, 4), torch.randn(7, 4), torch.tensor([0, 4, 2])
    scores = scores_at((hidden, table), positions)
    assert scores.shape == (3, 7)
    for row, position in enumerate(positions):
        # One product of four terms, in another order: a few times 1.2e-7 of values of size 5.
        torch.testing.assert_close(scores[row], table @ hidden[row, position], rtol=1e-5, atol=2e-6)


def test_a_layer_runs_its_own_forward_where_it_has_one():
    module = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    assert torch.equal(Layer("plain", nn.Linear).run(module, x), module(x))
    own = Layer("own", nn.Linear, {"in_features": 2, "out_features": 3}, forward=lambda module, x: (module, x))
    assert own.run(module, x) == (module, x)
    assert own.build().weight.shape == (3, 2)
