"""A dataset of the Hugging Face hub, by the names of its columns."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import datasets
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
        "revision": "commit or tag, the newest if not given; only with one does a second run not ask the hub",
        **COLUMN_OPTIONS,
    }

    def __init__(self, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(seed=seed, options=options)
        self.files = ()  # type: ignore[misc]
        if "id" not in self.given:
            raise ConfigError("dataset 'hub' needs the option id, owner/name of the dataset")

    def folder(self, data_dir: Path | None, scratch: Path) -> Path:
        return scratch

    def identity(self, folder: Path) -> Any:
        at = Path(self.given["id"])
        if at.is_dir():
            return [
                [str(path.relative_to(at)), path.stat().st_size, path.stat().st_mtime_ns]
                for path in sorted(at.rglob("*"))
            ]
        if "revision" in self.given:
            return ["revision", self.given["revision"]]
        try:
            return ["commit", huggingface_hub.HfApi().dataset_info(self.given["id"]).sha]
        except (ValueError, OSError) as error:  # what the hub's client raises, for names and for the network
            raise DataError(f"dataset {self.given['id']!r} cannot be found: {error}") from error

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
        try:
            rows = datasets.load_dataset(
                self.given["id"],
                self.given.get("config"),
                split=self.given.get("split", "train"),
                revision=self.given.get("revision"),
                streaming=True,
            )
        except (ValueError, OSError) as error:  # what `datasets` raises for names that are none, and without a network
            raise DataError(f"dataset {self.given['id']!r} cannot be loaded: {error}") from error
        wanted = list(dict.fromkeys(header.values()))
        if rows.column_names is not None:
            positions_of(wanted, rows.column_names, path=path)
        tables = (pl.DataFrame({name: batch[name] for name in wanted}) for batch in rows.iter(_ROWS))
        yield from read_tables(tables, path=path, header=header, columns=columns, unique=unique, tally=tally)
