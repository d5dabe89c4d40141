"""Profiles on disk, so that the next start with the same model, shapes and machine measures nothing.

A file is found by the fingerprint of what decides the measurement; it holds that text too, and one that says something
else than its name is refused.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from recparallel.caches import cache_folder
from recparallel.errors import PartitionError
from recparallel.models.layer import Layer
from recparallel.plan import Profile

MEASUREMENT = 5
"""The version of how layers and links are measured: it goes up when what an older version measured would mislead a newer one."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    measured: dict[str, Any]
    profile: Profile


def conditions(
    layers: Sequence[Layer],
    loss_fn: Any,
    *,
    shape: Sequence[int],
    dtype: torch.dtype,
    devices: Sequence[str],
) -> dict[str, Any]:
    """Everything that decides a measurement.

    Args:
        layers, loss_fn: the model.
        shape: sequences and positions of the micro-batch.
        dtype: of the weights.
        devices: what each rank runs on, host included.
    """
    return {
        "measurement": MEASUREMENT,
        "layers": [
            f"{layer.name} {layer.module_class.__module__}.{layer.module_class.__qualname__} {_text(layer.kwargs)}"
            for layer in layers
        ],
        "loss": f"{type(loss_fn).__qualname__} {_text(_numbers(loss_fn))}",
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "devices": list(devices),
        "versions": {name: version(name) for name in ("recparallel", "torch", "transformers")},
    }


def load(measured: dict[str, Any], folder: Path | None = None) -> Profile | None:
    """The profile made under these conditions, or None.

    Raises:
        PartitionError: the file is damaged, or was made under other conditions.
    """
    path = _path(measured, folder)
    if not path.is_file():
        return None
    try:
        stored = _File.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        raise PartitionError(
            f"cached profile {path} cannot be read or is damaged; delete it, and it is measured again"
        ) from error
    if stored.measured != json.loads(json.dumps(measured)):
        raise PartitionError(
            f"cached profile {path} was made under other conditions than its name says; delete it, and it is measured again"
        )
    return stored.profile


def save(measured: dict[str, Any], profile: Profile, folder: Path | None = None) -> Path:
    """Keep a profile; a reader never sees half of it."""
    path = _path(measured, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(_File(measured=measured, profile=profile).model_dump_json(indent=1) + "\n")
    fresh.replace(path)
    return path


def _path(measured: dict[str, Any], folder: Path | None) -> Path:
    fingerprint = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:20]
    return (folder or cache_folder("profiles")) / f"{fingerprint}.json"


def _text(value: Any) -> str:
    if hasattr(value, "to_json_string"):  # a Hugging Face config; its JSON leaves out how attention is computed
        return f"{getattr(value, '_attn_implementation', None)} {value.to_json_string()}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(value[key])}" for key in sorted(value) if not key.startswith("_"))
    return value if isinstance(value, str) else repr(value)


def _numbers(loss_fn: Any) -> dict[str, Any]:
    """A loss's own settings: its plain attributes."""
    return {key: value for key, value in vars(loss_fn).items() if isinstance(value, int | float | str | bool)}
