"""An exported run is a plain Hugging Face model: other software loads it, and ranks the same items."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from training import LENGTH, NUM_ITEMS, Run, deepspeed_config
from typer.testing import CliRunner

from recparallel.checkpointing.export import ITEMS, export_run, find_checkpoint
from recparallel.cli import app
from recparallel.errors import CheckpointError

HISTORIES = torch.randint(1, NUM_ITEMS + 1, (6, LENGTH), generator=torch.Generator().manual_seed(3))

SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
ARCHITECTURES = {
    "llama": {**SIZE, "intermediate_size": 24},
    "qwen3": {**SIZE, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8},
    "phi3": {**SIZE, "intermediate_size": 24},
    "gemma2": {**SIZE, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 3},
    "gpt_neox": {**SIZE, "intermediate_size": 24},
    "opt": {**SIZE, "ffn_dim": 24, "max_position_embeddings": LENGTH},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": LENGTH},
}


def trained(family, tied, dtype, folder, histories):
    """Train three steps, save, and score every item behind every history; the scores of the rank that has them."""
    from training import global_batches, train

    import recparallel
    from recparallel.engines.bindings import Bindings
    from recparallel.engines.checkpoint import save_checkpoint

    tokens = {"vocab_size": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    architecture = {"model_type": family, **tokens, **ARCHITECTURES[family]}
    run = Run(stages=2, steps=3, dtype=dtype)
    recommender = recparallel.build_recommender(architecture, num_items=NUM_ITEMS, tied=tied)
    engine, *_ = recparallel.initialize(
        model=recommender, config=deepspeed_config(run, replicas=1), sample=global_batches(1)[0][0]
    )
    train(engine, run)
    save_checkpoint(engine, Path(folder), sampler={})
    bindings = Bindings()
    bindings.bind(engine.module, "loss_fn", lambda outputs, labels: outputs[0] @ outputs[1].T)
    scores = engine.eval_batch(
        iter([(histories, histories)]), reduce_output=None, bcast_loss=False, num_micro_batches=1
    )
    bindings.remove()
    return scores[0].float() if engine.is_last_stage() else None


PLAIN = """
    import json, sys
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    histories = torch.tensor(json.loads(sys.argv[1]))
    for folder in sys.argv[2:]:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            torch.save(model(histories).logits.float(), f"{folder}.scores")
    assert not [name for name in sys.modules if name.startswith(("recparallel", "deepspeed"))]
"""

CASES = [(family, tied) for family in ARCHITECTURES for tied in (True, False)]


@pytest.fixture(scope="module")
def scores(pools, tmp_path_factory):
    """By family and kind of head: our scores, and those of transformers alone, which loads every exported folder in one process."""
    ours, folders = {}, {}
    for family, tied in CASES:
        run = tmp_path_factory.mktemp("run")
        found = pools[2].run(trained, family=family, tied=tied, dtype="fp32", folder=str(run), histories=HISTORIES)
        ours[family, tied] = next(part for part in found if part is not None)
        folders[family, tied] = run / "exported"
        manifest = export_run(run, run / "exported")
        assert (manifest.step, manifest.num_rows) == (3, NUM_ITEMS + 1)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PLAIN), json.dumps(HISTORIES.tolist()), *map(str, folders.values())],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr
    return {case: (ours[case], torch.load(f"{folder}.scores")) for case, folder in folders.items()}


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_transformers_alone_gives_the_same_scores_and_lists(scores, family, tied):
    ours, theirs = scores[family, tied]
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    assert torch.equal(theirs[:, -1].topk(10).indices, ours[:, -1].topk(10).indices)


@pytest.fixture(scope="module")
def run_folder(pools, tmp_path_factory):
    """What a training leaves, with names of the items."""
    run = tmp_path_factory.mktemp("run")
    pools[2].run(trained, family="llama", tied=True, dtype="bf16", folder=str(run / "checkpoints"), histories=HISTORIES)
    (run / ITEMS).write_text(json.dumps([f"item-{number}" for number in range(1, NUM_ITEMS + 1)]))
    return run


def test_the_command_writes_weights_config_and_a_tokenizer(run_folder, tmp_path):
    done = CliRunner().invoke(app, ["export", str(run_folder), "--to", str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert f"step 3, {NUM_ITEMS} items: written to {tmp_path / 'out'}" in done.output
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == NUM_ITEMS + 1
    assert model.config.architectures == ["LlamaForCausalLM"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert tokenizer("item-7 item-40").input_ids == [7, 40]
    assert tokenizer.decode([3]) == "item-3"
    assert tokenizer.pad_token_id == 0
    assert len(tokenizer) == NUM_ITEMS + 1


def test_without_names_there_is_no_tokenizer(run_folder, tmp_path):
    assert find_checkpoint(run_folder) == run_folder / "checkpoints" / "step_3"
    assert find_checkpoint(run_folder / "checkpoints") == find_checkpoint(run_folder)
    step = tmp_path / "alone" / "deeper" / "step_3"
    step.parent.mkdir(parents=True)
    step.symlink_to(run_folder / "checkpoints" / "step_3")
    done = CliRunner().invoke(app, ["export", str(step), "--to", str(tmp_path / "out")])
    assert "without a tokenizer: no items.json" in done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


def test_what_cannot_be_exported_is_refused(run_folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export_run(tmp_path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(CheckpointError, match="full is not empty; name a new folder"):
        export_run(run_folder, tmp_path / "full")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(run_folder / "checkpoints")
    (tmp_path / "run" / ITEMS).write_text(json.dumps(["a", "b"]))
    with pytest.raises(CheckpointError, match=r"names 2 items, the table of .* has 40"):
        export_run(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run" / ITEMS).write_text(json.dumps(["a"] * NUM_ITEMS))
    with pytest.raises(CheckpointError, match="names an item twice"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
