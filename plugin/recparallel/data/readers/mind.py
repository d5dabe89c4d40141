"""MIND: impressions of news and which of them were clicked (Wu et al., ACL 2020)."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recparallel.data.columns import Column, Text, Time
from recparallel.data.delimited import read_delimited
from recparallel.data.malformed import Tally
from recparallel.data.readers import Reader

_TIME = "%m/%d/%Y %I:%M:%S %p"


class Mind(Reader):
    """Read ``behaviors.tsv`` (impression, user, time, earlier clicks, ``news-label`` of what was shown) and ``news.tsv``
    (news, category, subcategory, title and more).

    Each news shown is an interaction with rating 1 if it was clicked and else 0. A user's earlier clicks, the same in each
    of their rows, are interactions once, with rating 1 and timestamp 0: when they were is not known, but the order is.
    """

    name = "mind"
    files = ("behaviors.tsv", "news.tsv")
    source = "MINDsmall_train.zip or MINDlarge_train.zip, unpacked, from https://msnews.github.io/"
    min_rating = 1.0

    def interactions(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        path = folder / "behaviors.tsv"
        columns: dict[str, Column] = {
            "impression": Text(),
            "user": Text(True),
            "timestamp": Time(format=_TIME),
            "earlier": Text(),
            "shown": _Impressions(),
        }
        known = pl.Series(dtype=pl.String)
        for table in read_delimited(path, separator="\t", columns=columns, tally=tally):
            first = table.filter(pl.col("user").is_first_distinct() & ~pl.col("user").is_in(known.implode()))
            known = pl.concat([known, first["user"]])
            yield (
                first.select("user", pl.col("earlier").str.split(" ").alias("item"))
                .explode("item")
                .filter(pl.col("item") != "")
                .with_columns(timestamp=pl.lit(0, dtype=pl.Int64), rating=pl.lit(1.0, dtype=pl.Float32))
            )
            shown = table.select("user", "timestamp", pl.col("shown").str.split(" ")).explode("shown")
            yield shown.select(
                "user",
                pl.col("shown").str.head(-2).alias("item"),
                "timestamp",
                pl.col("shown").str.ends_with("-1").cast(pl.Float32).alias("rating"),
            )

    def items(self, folder: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        names = ("subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
        for table in read_delimited(
            folder / "news.tsv",
            separator="\t",
            columns={"item": Text(True), "category": Text(), **{name: Text() for name in names}},
            unique="item",
            tally=tally,
        ):
            yield table.select("item", "title", pl.concat_list("category", "subcategory").alias("genres"))


class _Impressions:
    """``news-label`` pairs with spaces between; those of the test set, which have no labels, are malformed."""

    def read(self, text: pl.Expr) -> pl.Expr:
        return text.str.strip_chars()

    def complain(self, name: str, text: pl.Expr) -> pl.Expr:
        right = text.str.strip_chars().str.contains(r"^[^ ]+-[01]( [^ ]+-[01])*$")
        return pl.when(~right).then(pl.lit("expected what was shown as 'N1-0 N2-1 …', with labels"))
