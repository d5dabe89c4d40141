"""Readers: one public format a file, each turning a folder into an :class:`~recparallel.data.log.InteractionLog`.

To add one: subclass :class:`Reader`, name the files, write ``parse``, and register the class under ``readers`` in
``recparallel/registry.py`` (or, from another package, as an entry point in the group ``recparallel.readers``).
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from recparallel.data.log import InteractionLog
from recparallel.errors import DataError


class Reader(ABC):
    """Base of all readers. Required: the class attributes ``name``, ``files`` and ``source``, and ``parse``.

    Args:
        seed: for readers that generate what they read; others ignore it.
    """

    name: ClassVar[str]
    """The dataset's name, as in the registry."""

    files: ClassVar[tuple[str, ...]]
    """Files that must be in the folder."""

    source: ClassVar[str]
    """Where a user gets the files, in words, with the dataset's homepage."""

    generates: ClassVar[bool] = False
    """Override with True if the reader can do without a folder of the user's."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def read(self, folder: Path, *, max_malformed: float) -> InteractionLog:
        """Read the log in ``folder``.

        Args:
            folder: where the files are.
            max_malformed: share of a file's rows that may be malformed.

        Raises:
            DataError: the folder or files are missing, a file is empty, or too many rows are malformed.
        """
        self.check_files(folder)
        return self.parse(folder, max_malformed=max_malformed)

    @abstractmethod
    def parse(self, folder: Path, *, max_malformed: float) -> InteractionLog:
        """Read the log; ``folder`` exists and holds all of ``files``."""

    def check_files(self, folder: Path) -> None:
        """Raise unless ``folder`` holds all of ``files``.

        Raises:
            DataError: says which files were expected, which are missing, where, and where to get them.
        """
        missing = [file for file in self.files if not (folder / file).is_file()]
        if not missing:
            return
        state = "lacks some" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise DataError(
            f"dataset {self.name!r} expects the files {', '.join(self.files)}, but {folder} {state}; "
            f"missing: {', '.join(missing)}. Where to get them: {self.source}"
        )
