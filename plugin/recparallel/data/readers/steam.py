"""Steam: reviews of games as McAuley's lab publishes them (Kang & McAuley, "Self-attentive sequential recommendation")."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Text, Time
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.data.records import python_literal, read_records


class Steam(Reader):
    """Read ``steam_reviews.json.gz`` (``username``, ``product_id``, ``date``) and, where it is there,
    ``steam_games.json.gz`` (``id``, ``app_name``, ``genres``): a Python dictionary a line, in spite of the name.

    There are no ratings: each is 1.0. Times are days; the events of one are in the order of the file.
    """

    name = "steam"
    files = ("steam_reviews.json*",)
    optional_files = ("steam_games.json*",)
    source = "version 2 at https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data"

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.files[0]):
            for table in read_records(
                path,
                fields={"user": "username", "item": "product_id", "timestamp": "date"},
                columns={"user": Text(True), "item": Text(True), "timestamp": Time(format="%Y-%m-%d")},
                parse=python_literal,
                tally=tally,
            ):
                yield table.with_columns(rating=pl.lit(1.0, dtype=pl.Float32))

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for path in self.matching(folder, self.optional_files[0]):
            yield from read_records(
                path,
                fields={"item": "id", "title": "app_name"},
                lists={"genres": "genres"},
                columns={"item": Text(True), "title": Text()},
                parse=python_literal,
                tally=tally,
            )
