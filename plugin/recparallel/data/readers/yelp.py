"""The Yelp Open Dataset: reviews of businesses."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Number, Text, Time
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader
from recparallel.data.readers.movielens_1m import split_genres
from recparallel.data.records import read_records


class Yelp(Reader):
    """Read ``yelp_academic_dataset_review.json`` (``user_id``, ``business_id``, ``stars``, ``date``) and
    ``yelp_academic_dataset_business.json`` (``business_id``, ``name``, ``categories``), a JSON object a line."""

    name = "yelp"
    files = ("yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json")
    source = "the JSON archive at https://business.yelp.com/data/resources/open-dataset/"

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        when = Time(format="%Y-%m-%d %H:%M:%S")
        return read_records(
            folder / "yelp_academic_dataset_review.json",
            fields={"user": "user_id", "item": "business_id", "timestamp": "date", "rating": "stars"},
            columns={"user": Text(True), "item": Text(True), "timestamp": when, "rating": Number()},
            tally=tally,
        )

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        for table in read_records(
            folder / "yelp_academic_dataset_business.json",
            fields={"item": "business_id", "title": "name", "genres": "categories"},
            columns={"item": Text(True), "title": Text(), "genres": Text()},
            unique="item",
            tally=tally,
        ):
            yield table.select("item", "title", split_genres(pl.col("genres"), ","))
