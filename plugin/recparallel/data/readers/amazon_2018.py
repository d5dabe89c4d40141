"""Amazon Reviews 2018: reviews and metadata as McAuley's lab publishes them (Ni, Li & McAuley, EMNLP 2019)."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import polars as pl

from recparallel.data.columns import Number, Text, Time, Unit
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.data.records import read_records


class Amazon2018(Reader):
    """Read one category: the reviews, a JSON object a line (``reviewerID``, ``asin``, ``overall``, ``unixReviewTime``), and
    the metadata (``asin``, ``title``, ``category``) where it is there. Compressed or not, 5-core or whole."""

    name = "amazon-2018"
    files = ("*.json*",)
    optional_files = ("meta_*.json*",)
    source = (
        "a category's reviews (Books_5.json.gz, say) and its metadata (meta_Books.json.gz), alone in a folder, from "
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"
    )

    review: ClassVar[dict[str, str]] = {
        "user": "reviewerID",
        "item": "asin",
        "timestamp": "unixReviewTime",
        "rating": "overall",
    }
    """The keys of a review."""

    unit: ClassVar[Unit] = "s"
    genres: ClassVar[str] = "category"
    """The key of an item's categories."""

    def matching(self, folder: Path, pattern: str) -> list[Path]:
        found = super().matching(folder, pattern)
        return [path for path in found if path.name.startswith("meta_") == (pattern in self.optional_files)]

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.files[0]):
            yield from read_records(
                path,
                fields=self.review,
                columns={"user": Text(True), "item": Text(True), "timestamp": Time(self.unit), "rating": Number()},
                tally=tally,
            )

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.optional_files[0]):
            yield from read_records(
                path,
                fields={"item": self.review["item"], "title": "title"},
                lists={"genres": self.genres},
                columns={"item": Text(True), "title": Text()},
                tally=tally,
            )
