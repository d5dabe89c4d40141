"""One name for every parameter under every plan: the one that the Hugging Face model would give it.

An item table stands where the language model has its tokens, a head of its own where it has its output matrix.
"""

from recparallel.models.layer import Layer
from recparallel.models.layers import DecoderBlock, ItemEmbedding, NextItemHead, TrunkPart
from recparallel.models.trunk import Trunk

WEIGHT, STATE = "weight", "optimizer"
"""First words of a tensor's name in a checkpoint: ``weight/NAME`` and ``optimizer/NAME/KEY``."""


def global_name(layer: Layer, name: str, trunk: Trunk) -> str:
    """What the whole model calls a parameter.

    Args:
        layer: the pipeline layer that holds it.
        name: what the layer's module calls it, ``"block.self_attn.q_proj.weight"``.
        trunk: of the model.

    Returns:
        ``"model.layers.3.self_attn.q_proj.weight"``.

    Example:
        >>> from transformers import AutoConfig
        >>> trunk = Trunk.of(AutoConfig.for_model("llama", num_hidden_layers=2))
        >>> global_name(Layer("head", NextItemHead), "weight", trunk)
        'lm_head.weight'
    """
    kind = layer.module_class
    if issubclass(kind, DecoderBlock):
        return f"{trunk.blocks}.{layer.kwargs['index']}.{name.removeprefix('block.')}"
    if issubclass(kind, TrunkPart):
        return f"{layer.kwargs['path']}.{name.removeprefix('part.')}"
    if issubclass(kind, ItemEmbedding):
        return f"{trunk.embedding}.{name}"
    if issubclass(kind, NextItemHead):
        return f"{trunk.head}.{name}"
    return f"{layer.name}.{name}"
