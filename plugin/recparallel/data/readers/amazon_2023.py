"""Amazon Reviews 2023: reviews and metadata as McAuley's lab publishes them (Hou et al., arXiv 2403.03952)."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Number, Text, Time
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.data.records import read_records


class Amazon2023(Reader):
    """Read one category: the reviews, a JSON object a line (``user_id``, ``parent_asin``, ``rating``, ``timestamp`` in
    milliseconds), and the metadata (``parent_asin``, ``title``, ``categories``) where it is there.

    An item is a ``parent_asin``: variants of one product, of other colour or size, are one item.
    """

    name = "amazon-2023"
    files = ("*.jsonl*",)
    optional_files = ("meta_*.jsonl*",)
    source = (
        "a category's reviews (All_Beauty.jsonl.gz, say) and its metadata (meta_All_Beauty.jsonl.gz), alone in a folder, "
        "from https://amazon-reviews-2023.github.io/"
    )

    def matching(self, folder: Path, pattern: str) -> list[Path]:
        found = super().matching(folder, pattern)
        return [path for path in found if path.name.startswith("meta_") == (pattern in self.optional_files)]

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.files[0]):
            yield from read_records(
                path,
                fields={"user": "user_id", "item": "parent_asin", "timestamp": "timestamp", "rating": "rating"},
                columns={"user": Text(True), "item": Text(True), "timestamp": Time("ms"), "rating": Number()},
                tally=tally,
            )

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.optional_files[0]):
            yield from read_records(
                path,
                fields={"item": "parent_asin", "title": "title"},
                lists={"genres": "categories"},
                columns={"item": Text(True), "title": Text()},
                tally=tally,
            )
