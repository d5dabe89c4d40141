"""Write a trained run as a plain Hugging Face folder, which ``AutoModelForCausalLM.from_pretrained`` loads without us.

Items are its tokens: number ``n`` of the catalogue is token ``n``, 0 is padding. Scores of the next item are the logits at the
last position of a history.
"""

import copy
import json
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import CharDelimiterSplit
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from recparallel.checkpointing.commit import POINTER, latest
from recparallel.checkpointing.manifest import FILE, Manifest, read_manifest, verify_files
from recparallel.checkpointing.names import WEIGHT
from recparallel.checkpointing.tensors import TENSORS, read_tensors, stored_tensors
from recparallel.errors import CheckpointError
from recparallel.models.trunk import Trunk

ITEMS = "items.json"
"""Beside a run's checkpoints: names of the items ``1 … num_items``, in the order of their numbers."""

PAD = "[PAD]"
SHARD_SIZE = "5GB"


def export_run(run: Path, folder: Path, *, dtype: torch.dtype = torch.float32) -> Manifest:
    """Write the latest checkpoint of ``run`` to ``folder``: weights, config, and a tokenizer where the run names its items.

    Args:
        run: what ``--output_dir`` named; its ``checkpoints`` folder; or one checkpoint.
        folder: new or empty.
        dtype: of the written weights.

    Returns:
        the checkpoint's manifest.

    Raises:
        CheckpointError: there is no whole checkpoint, ``folder`` holds something, or the names do not fit the table.
    """
    source = find_checkpoint(run.absolute())
    manifest = read_manifest(source)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; name a new folder")
    names = _item_names(source, manifest)
    tokenizer = None if names is None else _tokenizer(names)
    verify_files(manifest, source)
    stored, prefix = stored_tensors(source / TENSORS), f"{WEIGHT}/"
    weights = read_tensors([name for name in stored if name.startswith(prefix)], source / TENSORS, stored=stored)
    config = _config(manifest)
    trunk = Trunk.of(config)
    folder.mkdir(parents=True, exist_ok=True)
    state = {trunk.stored_name(name.removeprefix(prefix)): tensor.to(dtype) for name, tensor in weights.items()}
    save_torch_state_dict(state, folder, max_shard_size=SHARD_SIZE)
    written = copy.deepcopy(config)
    written.dtype = dtype
    written.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return manifest


def find_checkpoint(run: Path) -> Path:
    """The checkpoint that ``run`` means.

    Raises:
        CheckpointError: there is none.
    """
    if (run / FILE).is_file():
        return run
    checkpoints = run / "checkpoints"
    return latest(checkpoints if (checkpoints / POINTER).is_file() else run)


def _config(manifest: Manifest) -> PretrainedConfig:
    """The trunk's config with as many tokens as the table has rows."""
    options = copy.deepcopy(manifest.trunk)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    if manifest.items:
        config.vocab_size = manifest.num_rows
        config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, None, None
    config.architectures = [type(Trunk.of(config).skeleton).__name__]
    return config


def _item_names(source: Path, manifest: Manifest) -> list[str] | None:
    for folder in (source, source.parent, source.parent.parent):
        if (folder / ITEMS).is_file():
            names: list[str] = json.loads((folder / ITEMS).read_text())
            if len(names) + 1 != manifest.num_rows:
                raise CheckpointError(
                    f"{folder / ITEMS} names {len(names):,} items, the table of {source} has {manifest.num_rows - 1:,}"
                )
            return names
    return None


def _tokenizer(names: list[str]) -> PreTrainedTokenizerFast:
    """Item names to numbers; in a text they stand between spaces."""
    vocabulary = {PAD: 0, **{name: number for number, name in enumerate(names, start=1)}}
    if len(vocabulary) != len(names) + 1:
        raise CheckpointError(f"{ITEMS} names an item twice, or one {PAD!r}")
    tokenizer = Tokenizer(WordLevel(vocabulary))
    tokenizer.pre_tokenizer = CharDelimiterSplit(" ")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, padding_side="right")
