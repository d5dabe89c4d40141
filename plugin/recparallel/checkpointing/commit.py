"""A checkpoint is there as a whole or not at all: written beside its place, synced, renamed, then pointed at.

Whenever the machine stops, the pointer ``latest`` names a whole checkpoint: the new one or the one before it.
"""

import os
import shutil
from pathlib import Path

from recparallel.errors import CheckpointError

POINTER = "latest"
_PARTIAL = ".partial"


def begin(folder: Path, name: str) -> Path:
    """An empty folder to write the checkpoint ``name`` into; what an interrupted save left is removed.

    Raises:
        CheckpointError: ``name`` is the latest checkpoint; writing it again would put the only good copy at risk.
    """
    if (folder / POINTER).is_file() and (folder / POINTER).read_text().strip() == name:
        raise CheckpointError(f"{folder / name} is the latest checkpoint already")
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(left)
    partial = folder / f"{name}{_PARTIAL}"
    partial.mkdir()
    return partial


def commit(partial: Path) -> Path:
    """Put a written folder in its place and make it the latest. Its files must be synced already.

    Returns:
        where it is now.
    """
    folder, target = partial.parent, partial.parent / partial.name.removesuffix(_PARTIAL)
    for inner in [*(path for path in partial.rglob("*") if path.is_dir()), partial]:
        sync_folder(inner)
    if target.exists():
        shutil.rmtree(target)  # of an earlier run; nothing points at it
    os.replace(partial, target)
    sync_folder(folder)
    fresh = folder / f"{POINTER}.new"
    write_synced(fresh, target.name.encode())
    os.replace(fresh, folder / POINTER)
    sync_folder(folder)
    return target


def latest(folder: Path) -> Path:
    """The latest whole checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        raise CheckpointError(
            f"{folder} holds no checkpoint (no file {POINTER!r}); start without --resume, or name another folder"
        )
    target = folder / pointer.read_text().strip()
    if not target.is_dir():
        raise CheckpointError(f"{pointer} names {target}, which does not exist")
    return target


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what a folder lists, renames included, survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
