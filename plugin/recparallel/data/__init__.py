"""From files to batches: interaction logs, histories, splits, samplers and tensors.

The way through the room::

    log = load_log("movielens-100k", "ml-100k")              # readers/: files to an InteractionLog
    split = leave_one_out(Histories.from_log(log))           # histories.py, splits.py: items become 1 … num_items
    windows = split.train_windows(max_length=200)
    sampler = GlobalBatchSampler(len(windows), micro_batch=16, num_micro_batches=4, num_replicas=2, replica=0, seed=0)
    for micro_batches in WindowLoader(windows, sampler, max_length=200):  # one optimizer step of replica 0
        ...

Nothing here knows a model or an engine.
"""

import tempfile
from pathlib import Path

from recparallel.data.log import InteractionLog
from recparallel.data.readers import Reader
from recparallel.errors import ConfigError, DataError
from recparallel.registry import readers

__all__ = ["InteractionLog", "load_log"]


def load_log(name: str, data_dir: str | Path | None, *, max_malformed: float = 0.001, seed: int = 0) -> InteractionLog:
    """Read the interaction log ``name`` from ``data_dir``.

    Args:
        name: a registered reader, such as ``"movielens-1m"``.
        data_dir: the folder with the files in the dataset's original format; None only for a dataset that is generated
            (``"synthetic"``).
        max_malformed: share of a file's rows, in [0, 1], that may be malformed; they are left out, counted and logged.
        seed: for a generated dataset; others ignore it.

    Raises:
        UnknownNameError: no reader has this name.
        ConfigError: ``max_malformed`` is not a share.
        DataError: ``data_dir`` is None, files are missing or empty, or too many rows are malformed.
    """
    if not 0 <= max_malformed <= 1:
        raise ConfigError(f"max_malformed must be a share of the rows from 0 to 1, got {max_malformed}")
    reader: Reader = readers.load(name, where="name")(seed=seed)
    if data_dir is not None:
        return reader.read(Path(data_dir), max_malformed=max_malformed)
    if not reader.generates:
        raise DataError(
            f"dataset {name!r} needs a data_dir, the folder that holds {', '.join(reader.files)}; got None. "
            f"Where to get them: {reader.source}"
        )
    with tempfile.TemporaryDirectory() as folder:
        return reader.read(Path(folder), max_malformed=max_malformed)
