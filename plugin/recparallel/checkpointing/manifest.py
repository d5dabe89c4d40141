"""What a checkpoint is: the plan it was written under, the model, and every file with its size and checksum."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from recparallel.errors import CheckpointError
from recparallel.plan import ParallelPlan

FILE = "manifest.json"
FORMAT = 1


class StoredFile(BaseModel):
    """A file of the checkpoint.

    Attributes:
        num_bytes: its size.
        sha256: its checksum, hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class Manifest(BaseModel):
    """Written last: a folder that has it is whole.

    Attributes:
        format: of the checkpoint.
        step: optimizer steps done.
        plan: under which it was written.
        trunk: its Hugging Face config, as a dictionary.
        num_rows: of the item table.
        items: whether its rows are items; otherwise they are the language model's own tokens.
        files: by path below the checkpoint's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    step: int
    plan: ParallelPlan
    trunk: dict[str, Any]
    num_rows: int
    items: bool
    files: dict[str, StoredFile]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of one checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        found = content["format"]
    except OSError as error:
        if (folder / "plan.json").is_file():
            raise CheckpointError(f"{folder} is of an older format, which this version does not read") from None
        raise CheckpointError(f"{path}: {error.strerror}: the checkpoint is incomplete") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    if found != FORMAT:
        raise CheckpointError(f"{path} says format {found!r}, this version reads {FORMAT}")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def list_files(folder: Path) -> list[str]:
    """Paths of the files below ``folder``, the manifest left out."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, StoredFile]:
    """Size and checksum of files below ``folder``, by path."""
    return {name: _describe(folder / name) for name in names}


def verify_files(manifest: Manifest, folder: Path, *, share: int = 0, shares: int = 1) -> None:
    """Check every ``shares``-th file against the manifest.

    Raises:
        CheckpointError: one is missing, or not what was written; the message names it.
    """
    for name, expected in sorted(manifest.files.items())[share::shares]:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the checkpoint is incomplete")
        size = path.stat().st_size
        if size != expected.num_bytes:
            raise CheckpointError(f"{path} is damaged: it has {size:,} bytes, {expected.num_bytes:,} were written")
        if _describe(path) != expected:
            raise CheckpointError(f"{path} is damaged: its checksum is not the one that was written")


def _describe(path: Path) -> StoredFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return StoredFile(num_bytes=path.stat().st_size, sha256=digest.hexdigest())
