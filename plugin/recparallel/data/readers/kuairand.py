"""KuaiRand: short videos shown, and whether they were clicked (Gao et al., CIKM 2022)."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Number, Text, Time
from recparallel.data.delimited import read_delimited
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader

_TITLES = "video_features_basic_*.csv"


class KuaiRand(Reader):
    """Read the logs of the normal recommender, ``log_standard_*.csv`` (``user_id``, ``video_id``, ``time_ms``,
    ``is_click``), of KuaiRand-Pure, -1K or -27K. What was shown at random (``log_random_*.csv``) is left out.

    A rating is 1 if a video was clicked and else 0. Videos have no titles; their tags, numbers, stand for genres.
    """

    name = "kuairand"
    files = ("log_standard_*.csv",)
    optional_files = (_TITLES,)
    source = "the folder data/ of KuaiRand-Pure, -1K or -27K, from https://kuairand.com/"
    min_rating = 1.0

    def matching(self, folder: Path, pattern: str) -> list[Path]:
        # The archives have their files in data/.
        return super().matching(folder, pattern) or super().matching(folder / "data", pattern)

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.files[0]):
            yield from read_delimited(
                path,
                separator=",",
                header={"user": "user_id", "item": "video_id", "timestamp": "time_ms", "rating": "is_click"},
                columns={"user": Text(True), "item": Text(True), "timestamp": Time("ms"), "rating": Number()},
                tally=tally,
            )

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, _TITLES):
            for table in read_delimited(
                path,
                separator=",",
                header={"item": "video_id", "genres": "tag"},
                columns={"item": Text(True), "genres": Text()},
                quoted=True,
                tally=tally,
            ):
                tags = pl.col("genres").str.split(",").list.eval(pl.element().filter(pl.element() != ""))
                yield table.select("item", pl.col("item").alias("title"), tags)
