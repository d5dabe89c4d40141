"""Take a Hugging Face decoder-only LM apart without ever building it whole.

The model is made once on the ``meta`` device, where it costs no memory. A layer is a deep copy of one of its
submodules, given real memory and the family's own initial weights. Where things are is read from what transformers
exposes (``base_model_pp_plan``); a family without that plan is a subclass in ``families/``.
"""

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from recparallel import registry
from recparallel.errors import ConfigError
from recparallel.models.layer import Layer
from recparallel.tensor_parallel.block import BlockPlan, check_divisible

_EAGER_ONLY = ("attn_logit_softcapping", "reorder_and_upcast_attn")
"""Settings of configs that only transformers' eager attention heeds: Gemma 2 caps its scores, GPT-2 may widen them."""


class Trunk:
    """Where the parts of one model are: names of submodules of its causal LM.

    Attributes:
        embedding: token table, ``"model.embed_tokens"``.
        blocks: list of decoder blocks, ``"model.layers"``.
        norm: norm behind the last block, ``"model.norm"``.
        rotary: rotary position table, or ``""`` for a family without one.
        head: output matrix, ``"lm_head"``.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        with torch.device("meta"):
            self.skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        self.head = self._name_of(self.skeleton.get_output_embeddings())
        self.embedding, self.blocks, self.norm, self.rotary = self.locate()

    @staticmethod
    def of(config: PretrainedConfig) -> "Trunk":
        """The trunk of ``config``, built once per process for equal configs.

        Raises:
            UnknownNameError: the family is not supported; the message lists those that are.
        """
        return _trunk(_Key(config))

    def locate(self) -> tuple[str, str, str, str]:
        """Names of embedding, blocks, norm and rotary table. Override for a family without ``base_model_pp_plan``, or with more."""
        plan: dict[str, Any] | None = self.config.base_model_pp_plan
        if not plan:
            raise ConfigError(
                f"{type(self.config).__name__} has no base_model_pp_plan; write models/families/<family>.py"
            )
        prefix = self.skeleton.base_model_prefix
        first, middle, last = (f"{prefix}.{name}" for name in plan)
        rotary = f"{prefix}.rotary_emb" if hasattr(self.skeleton.base_model, "rotary_emb") else ""
        return first, middle, last, rotary

    def before_blocks(self) -> list[Layer]:
        """Layers between the embedding and the first block. Override for a family with, say, a table of positions."""
        return []

    def block_plan(self) -> BlockPlan:
        """How tensor ranks divide a block. Override for a family without ``base_model_tp_plan``, or with other cuts."""
        return BlockPlan.of(self.config.base_model_tp_plan, owner=type(self.config).__name__)

    def check_tensor_ranks(self, size: int) -> None:
        """Refuse a number of tensor ranks among which the blocks cannot be divided.

        Raises:
            ConfigError: what cannot be divided.
        """
        block = self.skeleton.get_submodule(f"{self.blocks}.0")
        check_divisible(block, self.block_plan(), self.config, size)

    @property
    def num_blocks(self) -> int:
        return len(self.skeleton.get_submodule(self.blocks))  # type: ignore[arg-type]

    @property
    def max_length(self) -> int | None:
        """The most positions that the model can take, or None without a limit. Override for a table of positions."""
        return None

    def stored_name(self, name: str) -> str:
        """What files call the tensor that the model calls ``name``. Override for a family that renames some."""
        return name

    @property
    def embedding_dropout(self) -> float:
        """Of the token vectors before anything else. Override for a family that has one there."""
        return 0.0

    @property
    def embedding_scale(self) -> float:
        """By which vectors of an item table are multiplied, as those of the tokens are. Override for a family that does so."""
        return 1.0

    @property
    def std(self) -> float:
        """Standard deviation of the family's initial weights."""
        return float(getattr(self.config, "initializer_range", getattr(self.config, "init_std", 0.02)))

    @property
    def dim(self) -> int:
        """Hidden width D."""
        return int(self.config.hidden_size)

    def attention_type(self, index: int) -> str:
        """The kind of mask that block ``index`` uses; keys the masks of families that mix full and sliding
        attention."""
        types = getattr(self.config, "layer_types", None)
        return types[index] if types else "full_attention"

    @property
    def attentions(self) -> tuple[str, ...]:
        """Ways to compute attention that all give the same, by transformers' names; the config's own comes first."""
        own = str(self.skeleton.config._attn_implementation)
        if any(getattr(self.config, key, None) for key in _EAGER_ONLY):
            return (own,)
        sdpa = ("sdpa",) if self.skeleton._supports_sdpa else ()
        return tuple(dict.fromkeys((own, *sdpa, "eager")))

    def materialize(self, path: str) -> nn.Module:
        """Submodule ``path`` in real memory, on the default device, with the family's initial weights (from torch's
        RNG)."""
        module = copy.deepcopy(self.skeleton.get_submodule(path)).to_empty(device="cpu")
        with torch.no_grad(), guard_torch_init_functions():
            module.apply(self.skeleton._init_weights)  # children first: GPT-2's blocks draw some of theirs again
        return module

    def _name_of(self, module: nn.Module) -> str:
        return next(name for name, candidate in self.skeleton.named_modules() if candidate is module)


class _Key:
    """A config that compares by content, so that equal configs share one skeleton."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self.text = f"{config._attn_implementation} {config.to_json_string(use_diff=False)}"  # the JSON leaves it out

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text


@lru_cache(maxsize=8)
def _trunk(key: _Key) -> Trunk:
    family: type[Trunk] = registry.families.load(key.config.model_type, where="model_type of the model's config")
    return family(key.config)
