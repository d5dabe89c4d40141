"""Readers by name: make one, or read a whole log with it into memory."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recparallel.data.log import InteractionLog
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.errors import ConfigError
from recparallel.registry import readers


def load_log(
    name: str,
    data_dir: str | Path | None,
    *,
    max_malformed: float = 0.001,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> InteractionLog:
    """Read the interaction log ``name`` from ``data_dir`` into memory. Trainings use
    :func:`~recparallel.data.preparation.prepare`, for which a log may be larger than memory.

    Args:
        name: a registered reader, such as ``"movielens-1m"``.
        data_dir: the folder with the files in the dataset's original format; None only for a dataset that is generated
            (``"synthetic"``) or comes from elsewhere (``"hub"``).
        max_malformed: share of a file's rows, in [0, 1], that may be malformed; they are left out, counted and logged.
        seed: for a generated dataset; others ignore it.
        options: of the reader.

    Raises:
        UnknownNameError: no reader has this name.
        ConfigError: ``max_malformed`` is not a share, or the reader has no such option.
        DataError: ``data_dir`` is None, files are missing or empty, or too many rows are malformed.
    """
    reader = make_reader(name, max_malformed=max_malformed, seed=seed, options=options)
    tally = Tally(max_malformed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = reader.folder(None if data_dir is None else Path(data_dir), Path(scratch))
        log = InteractionLog.from_tables(
            name, interactions=reader.interactions(folder, tally), items=reader.items(folder, tally)
        )
    return InteractionLog(log.name, log.interactions, log.items, tally.report)


def make_reader(
    name: str, *, max_malformed: float = 0.001, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Reader:
    """The reader of this name. Errors as of :func:`load_log`, without those of files."""
    if not 0 <= max_malformed <= 1:
        raise ConfigError(f"max_malformed must be a share of the rows from 0 to 1, got {max_malformed}")
    reader: Reader = readers.load(name, where="name")(seed=seed, options=options)
    return reader
