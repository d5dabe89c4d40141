"""Named tensors on disk, written by all ranks together and read by each rank for itself (``torch.distributed.checkpoint``)."""

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from recparallel.errors import CheckpointError

TENSORS = "tensors"
"""The folder of a checkpoint that holds them."""


class Stored(NamedTuple):
    """Shape and dtype of a tensor on disk."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def write_tensors(tensors: dict[str, Tensor], folder: Path, *, group: dist.ProcessGroup | None = None) -> None:
    """Write what the ranks hold to ``folder``, synced to the disk; every rank calls, each with tensors of its own.

    Args:
        group: of all ranks, for the words that they exchange; the default group if left out.

    Raises:
        CheckpointError: on every rank, where one could not write.
    """
    try:
        # Nothing to copy ahead: the tensors are in the host's memory.
        writer = FileSystemWriter(folder, sync_files=True, per_thread_copy_ahead=0)
        save(dict(tensors), storage_writer=writer, process_group=group)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"writing {folder}: {_reason(error)}") from error


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """What ``folder`` holds, by name; reads no tensor.

    Raises:
        CheckpointError: its index is missing or damaged.
    """
    try:
        metadata = FileSystemReader(folder).read_metadata()
        return {
            name: Stored(tuple(found.size), found.properties.dtype)
            for name, found in metadata.state_dict_metadata.items()
            if isinstance(found, TensorStorageMetadata)
        }
    except Exception as error:
        raise CheckpointError(f"{folder / '.metadata'} cannot be read: {error!r}") from error


def read_tensors(names: list[str], folder: Path, *, stored: dict[str, Stored] | None = None) -> dict[str, Tensor]:
    """The tensors called ``names``, on the CPU, as they were stored. Only their bytes are read; no rank waits for another.

    Args:
        stored: what :func:`stored_tensors` found, if that was asked already.

    Raises:
        CheckpointError: one is missing or cannot be read.
    """
    stored = stored_tensors(folder) if stored is None else stored
    if missing := [name for name in names if name not in stored]:
        raise CheckpointError(f"{folder} holds no tensor {missing[0]!r}")
    found = {name: torch.empty(stored[name].shape, dtype=stored[name].dtype) for name in names}
    if not found:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each rank reads alone
            load(found, storage_reader=FileSystemReader(folder), no_dist=True)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"reading {folder}: {_reason(error)}") from error
    return found


def _reason(error: BaseException) -> str:
    """In a line: torch's own error holds those of all ranks, with their tracebacks."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (failure, _) = min(error.failures.items())
        return f"rank {rank}: {type(failure).__name__}: {failure}"
    return f"{type(error).__name__}: {error}"
