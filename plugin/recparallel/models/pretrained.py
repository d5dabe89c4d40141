"""Fill layers from a Hugging Face folder, reading only the tensors that the layer at hand needs.

A stage builds its own layers and nothing else, so no process ever reads the whole model.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from recparallel.errors import CheckpointError
from recparallel.models.layer import Layer
from recparallel.models.layers import DecoderBlock, TokenEmbedding, TokenHead, TrunkPart
from recparallel.models.trunk import Trunk
from recparallel.tensor_parallel.split import part_of, shape_of_whole

logger = logging.getLogger(__name__)


def weights_folder(model: Any) -> Path | None:
    """The local folder with the safetensors of ``model`` (downloaded for a hub name), or None where it has no weights.

    Raises:
        CheckpointError: it has weights, but in another format.
    """
    if not isinstance(model, (str, Path)) or str(model).endswith(".json"):
        return None
    for name in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME):
        found = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found).parent
    for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        if cached_file(str(model), name, _raise_exceptions_for_missing_entries=False) is not None:
            raise CheckpointError(
                f"{model} has its weights in {name}, which cannot be read tensor by tensor; save them as safetensors "
                "(model.save_pretrained), or train from new weights with pretrained=False"
            )
    logger.warning("%s has a config but no weights: the trunk starts from new ones", model)
    return None


def with_pretrained_weights(layers: list[Layer], trunk: Trunk, folder: Path, *, tokens: bool) -> list[Layer]:
    """The same layers, which load their weights from ``folder`` when they are built.

    Args:
        tokens: also load the token table and the output matrix. False for a recommender over items, whose table is new.

    Raises:
        CheckpointError: (when a layer is built) the folder lacks a tensor that the layer has, or one of another shape.
    """
    return [_with_weights(layer, trunk, folder, tokens=tokens) for layer in layers]


def _with_weights(layer: Layer, trunk: Trunk, folder: Path, *, tokens: bool) -> Layer:
    if not issubclass(layer.module_class, (TrunkPart, DecoderBlock)):
        return layer
    if issubclass(layer.module_class, (TokenEmbedding, TokenHead)) and not tokens:
        return layer
    loading = type(layer.module_class.__name__, (_LoadsWeights, layer.module_class), {})
    return dataclasses.replace(layer, module_class=loading, kwargs={**layer.kwargs, "_source": (trunk, folder)})


class _LoadsWeights(nn.Module):
    """Mixin that fills the layer from its model folder right after it was built."""

    def __init__(self, *, _source: tuple[Trunk, Path], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        trunk, folder = _source
        prefix = kwargs["path"] if isinstance(self, TrunkPart) else f"{trunk.blocks}.{kwargs['index']}"
        part = self.part if isinstance(self, TrunkPart) else self.block
        with torch.no_grad():
            for name, tensor in part.named_parameters():  # type: ignore[union-attr]
                whole = _read(folder, trunk.stored_name(f"{prefix}.{name}"), shape_of_whole(tensor))
                tensor.copy_(part_of(whole, tensor))


def _read(folder: Path, name: str, shape: torch.Size) -> Tensor:
    names = (name, name.partition(".")[2])  # a base model's folder, such as gpt2's own, leaves the prefix out
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    path = folder / SAFE_WEIGHTS_NAME
    if index.is_file():
        files = json.loads(index.read_text())["weight_map"]
        listed = next((files[stored] for stored in names if stored in files), None)
        if listed is None:
            raise CheckpointError(f"{index} lists no tensor {name!r}, which this model needs")
        path = folder / listed
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; it should hold tensor {name!r}, which this model needs")
    with safe_open(path, framework="pt") as file:
        known = set(file.keys())
        found = next((stored for stored in names if stored in known), None)
        if found is None:
            raise CheckpointError(f"{path} has no tensor {name!r}, which this model needs")
        tensor: Tensor = file.get_tensor(found)
    if tensor.shape != shape:
        raise CheckpointError(f"{name!r} in {path} has shape {list(tensor.shape)}, this model needs {list(shape)}")
    return tensor
