"""A log that is prepared: histories in Arrow files, names beside them, and what was left out on the way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from recparallel.data.cleaning import CleaningReport
from recparallel.data.histories import Histories
from recparallel.data.lists import Lists
from recparallel.errors import DataError

MANIFEST = "manifest.json"
ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"


class Manifest(BaseModel):
    """What lies in the folder.

    Attributes:
        dataset: the reader's name.
        fingerprint: of the files and settings that it was made from.
        timed: whether timestamps are milliseconds since 1970, and not an order alone.
        num_users, num_items, num_interactions: what is left.
        shards: files of histories.
        filters: settings of :class:`~recparallel.data.cleaning.Filters`.
        report: what was left out.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: str
    fingerprint: str
    timed: bool
    num_users: int
    num_items: int
    num_interactions: int
    shards: int
    filters: dict[str, Any]
    report: CleaningReport


@dataclass(frozen=True)
class Prepared:
    """A folder that :func:`~recparallel.data.preparation.prepare` has made.

    Attributes:
        folder: where.
        manifest: what.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> "Prepared":
        """Open one.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = folder / MANIFEST
        try:
            return cls(folder, Manifest.model_validate_json(path.read_text()))
        except OSError as error:
            raise DataError(f"{folder} holds no prepared log: {error}") from error
        except ValidationError as error:
            raise DataError(f"{path}: damaged, or of another version: {error}; remove the folder") from error

    @staticmethod
    def shard_name(number: int) -> str:
        """Of one file of histories."""
        return f"histories-{number:05}.arrow"

    @property
    def shards(self) -> list[Path]:
        """The files of histories, in the order of users.

        Raises:
            DataError: one is missing.
        """
        paths = [self.folder / self.shard_name(number) for number in range(self.manifest.shards)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{self.folder} lacks {', '.join(missing)}; remove the folder, and it is made anew")
        return paths

    def histories(self) -> Histories:
        """Each user's items, read from disk when they are looked at.

        Raises:
            DataError: a file is missing or damaged.
        """
        return Histories(
            user_names=pl.read_parquet(self.folder / USERS_FILE)["name"],  # type: ignore[arg-type]
            item_names=["", *self.items()["item"]],
            sequences=Lists(self.shards, "items"),
            timestamps=Lists(self.shards, "timestamps") if self.manifest.timed else None,
            name=self.manifest.dataset,
        )

    def items(self) -> pl.DataFrame:
        """Columns ``item``, ``title`` and ``genres``; row ``i`` is item ``i + 1``."""
        return pl.read_parquet(self.folder / ITEMS_FILE)

    def dataset(self) -> datasets.Dataset:
        """A row a user: ``user`` (its number), ``items``, ``timestamps``, ``ratings``; on disk until it is looked at."""
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in self.shards])
