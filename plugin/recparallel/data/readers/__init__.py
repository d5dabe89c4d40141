"""Readers: one public format a file, each turning a folder into the columns of :mod:`recparallel.data.log`.

To add one: subclass :class:`Reader`, name the files, write ``interactions`` (and ``items`` where the format has them),
and register the class under ``readers`` in ``recparallel/registry.py`` (or, from another package, as an entry point in
the group ``recparallel.readers``).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from recparallel.data.malformed import Tally
from recparallel.errors import ConfigError, DataError

_END_BYTES = 2**16


class Reader(ABC):
    """Base of all readers. Required: the class attributes ``name``, ``files`` and ``source``, and ``interactions``.

    Args:
        seed: for readers that generate what they read; others ignore it.
        options: what the format leaves open, by name; those in :attr:`options`.

    Raises:
        ConfigError: an option that the reader does not have.
    """

    name: ClassVar[str]
    """The dataset's name, as in the registry."""

    files: tuple[str, ...]
    """Patterns of files in the folder, each of which some file must match."""

    optional_files: tuple[str, ...] = ()
    """Override with patterns of files that are read where they are there."""

    source: ClassVar[str]
    """Where a user gets the files, in words, with the dataset's homepage."""

    options: ClassVar[Mapping[str, str]] = {}
    """Override with the options that a user may give, and their help."""

    min_rating: ClassVar[float | None] = None
    """Override where a rating tells whether there was an interaction at all: lower ones are none."""

    version: ClassVar[int] = 1
    """Override with a higher number when the same files are read in another way: what was prepared is prepared anew."""

    timed: bool = True
    """Override with False if timestamps say the order of a user's events only, not when they were."""

    generates: ClassVar[bool] = False
    """Override with True if the reader can do without a folder of the user's."""

    def __init__(self, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> None:
        self.seed = seed
        self.given = {name: value for name, value in (options or {}).items() if value is not None}
        unknown = [name for name in self.given if name not in self.options]
        if unknown:
            raise ConfigError(
                f"dataset {self.name!r} has no option {', '.join(map(repr, unknown))}; allowed are "
                + (", ".join(f"{name} ({text})" for name, text in self.options.items()) or "none")
            )

    @abstractmethod
    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        """Give the interactions in file order, a piece at a time.

        Args:
            folder: exists and has passed :meth:`check_files`.
            tally: counts malformed rows.

        Yields:
            Columns ``user``, ``item`` (string, not empty), ``timestamp`` (int64: milliseconds since 1970, or whole numbers
            that order a user's events) and ``rating`` (float32: a rating, or 1 for an interaction and 0 for none).

        Raises:
            DataError: a file cannot be read, or too many rows are malformed.
        """

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        """Override to give what items are called: columns ``item``, ``title`` (string) and ``genres`` (list of string)."""
        return iter(())

    def paths(self, folder: Path) -> list[Path]:
        """Everything that is read."""
        return [path for pattern in (*self.files, *self.optional_files) for path in self.matching(folder, pattern)]

    def matching(self, folder: Path, pattern: str) -> list[Path]:
        """Files of a pattern, by name."""
        return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))

    def check_files(self, folder: Path) -> None:
        """Raise unless ``folder`` holds all of ``files``.

        Raises:
            DataError: says which files were expected, which are missing, where, and where to get them.
        """
        missing = [pattern for pattern in self.files if not self.matching(folder, pattern)]
        if not missing:
            return
        state = "lacks some" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise DataError(
            f"dataset {self.name!r} expects the files {', '.join(self.files)}, but {folder} {state}; "
            f"missing: {', '.join(missing)}. Where to get them: {self.source}"
        )

    def identity(self, folder: Path) -> Any:
        """What tells the files' content without reading it all: names, sizes, times of change, and a digest of both ends.

        Override where what is read is not in files of the user's.
        """
        return [
            [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns, _ends(path)]
            for path in self.paths(folder)
        ]

    def folder(self, data_dir: Path | None, scratch: Path) -> Path:
        """Where the files are: the user's folder, checked. Readers that generate theirs write them into ``scratch``.

        Raises:
            DataError: there is no folder, or files are missing.
        """
        if data_dir is None:
            raise DataError(
                f"dataset {self.name!r} needs a data_dir, the folder that holds {', '.join(self.files)}; got None. "
                f"Where to get them: {self.source}"
            )
        self.check_files(data_dir)
        return data_dir


def _ends(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_END_BYTES))
        file.seek(max(0, path.stat().st_size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return digest.hexdigest()
