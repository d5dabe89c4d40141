"""A dataset of the Hugging Face hub, by the names of its columns."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import datasets
import httpx
import huggingface_hub
import polars as pl

from recparallel.data.columns import Column
from recparallel.data.delimited import positions_of
from recparallel.data.malformed import Tally
from recparallel.data.readers.tabular import COLUMN_OPTIONS, Tabular
from recparallel.data.tables import read_tables
from recparallel.errors import ConfigError, DataError

_ROWS = 50_000


class Hub(Tabular):
    """Read a dataset as it streams in, without keeping a second copy of it.

    A line, in messages, is a row of the split.
    """

    name = "hub"
    files = ()
    default_files = ""
    source = "https://huggingface.co/datasets"
    generates = True
    options: ClassVar[Mapping[str, str]] = {
        "id": "owner/name of the dataset, or a folder",
        "config": "of the dataset, its default if not given",
        "split": "of the dataset, train if not given",
        "revision": "commit, tag or branch, the newest if not given; only with a commit does a second run not ask the hub",
        **COLUMN_OPTIONS,
    }

    def __init__(self, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(seed=seed, options=options)
        self.files = ()
        if "id" not in self.given:
            raise ConfigError("dataset 'hub' needs the option id, owner/name of the dataset")

    def folder(self, data_dir: Path | None, scratch: Path) -> Path:
        if data_dir is not None:
            raise DataError(f"dataset 'hub' is found by the option id and takes no data_dir, got {data_dir}")
        return scratch

    def identity(self, folder: Path) -> Any:
        at = Path(self.given["id"])
        if at.is_dir():
            return [
                [str(path.relative_to(at)), path.stat().st_size, path.stat().st_mtime_ns]
                for path in sorted(at.rglob("*"))
            ]
        revision = self.given.get("revision")
        if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
            return ["commit", revision]
        with self._told():
            return ["commit", huggingface_hub.HfApi().dataset_info(self.given["id"], revision=revision).sha]

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        header, columns = self.wanted()
        for table in self.read(Path(self.given["id"]), header, columns, tally):
            yield self.completed(table, 0)

    def read(
        self,
        path: Path,
        header: Mapping[str, str],
        columns: Mapping[str, Column],
        tally: Tally,
        unique: str | None = None,
    ) -> Iterator[pl.DataFrame]:
        wanted = list(dict.fromkeys(header.values()))
        yield from read_tables(
            self._tables(path, wanted), path=path, header=header, columns=columns, unique=unique, tally=tally
        )

    def _tables(self, path: Path, wanted: list[str]) -> Iterator[pl.DataFrame]:
        with self._told():
            rows = datasets.load_dataset(
                self.given["id"],
                self.given.get("config"),
                split=self.given.get("split", "train"),
                revision=self.given.get("revision"),
                streaming=True,
            )
            positions_of(wanted, rows.column_names or list(next(iter(rows))), path=path)
            for batch in rows.select_columns(wanted).iter(_ROWS):
                yield pl.DataFrame(dict(batch))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Around what asks the hub: its clients raise these for names that are none, and without a network."""
        try:
            yield
        except DataError:
            raise
        except (ValueError, OSError, httpx.HTTPError) as error:
            raise DataError(f"dataset {self.given['id']!r} cannot be loaded: {error}") from error
