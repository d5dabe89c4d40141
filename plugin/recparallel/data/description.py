"""What a prepared log looks like: counts, how dense it is, how long histories are, how popular items are, and when it was."""

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recparallel.data.prepared import Prepared
from recparallel.errors import ConfigError

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
PLOTS = "description.png"


@dataclass(frozen=True)
class Description:
    """Numbers of one log.

    Attributes:
        num_users, num_items, num_interactions: as prepared.
        lengths_U: events of each user.
        counts_I: events of each item.
        first, last: the time span; None where only the order is known.
    """

    num_users: int
    num_items: int
    num_interactions: int
    lengths_U: NDArray[np.int64]
    counts_I: NDArray[np.int64]
    first: datetime | None
    last: datetime | None

    @property
    def density(self) -> float:
        """Interactions, of all pairs of a user and an item."""
        return self.num_interactions / (self.num_users * self.num_items)

    @property
    def top_share(self) -> float:
        """Of all interactions, those with the hundredth of the items that has most."""
        top = np.sort(self.counts_I)[-max(1, self.num_items // 100) :]
        return float(top.sum() / self.num_interactions)

    def rows(self) -> list[tuple[str, str]]:
        """What to print: names and values."""
        lengths = np.quantile(self.lengths_U, QUANTILES, method="nearest").tolist()
        rows = [
            ("users", f"{self.num_users:,}"),
            ("items", f"{self.num_items:,}"),
            ("interactions", f"{self.num_interactions:,}"),
            ("density", f"{self.density:.4%}"),
            ("interactions with the most popular 1 % of items", f"{self.top_share:.1%}"),
            ("length of a history, mean", f"{self.lengths_U.mean():.1f}"),
            *((f"length of a history, {quantile:.0%}", f"{at:,}") for quantile, at in zip(QUANTILES, lengths)),
        ]
        if self.first is not None and self.last is not None:
            rows.append(("from", f"{self.first:%Y-%m-%d}"))
            rows.append(("to", f"{self.last:%Y-%m-%d}"))
        return rows


def describe(prepared: Prepared) -> Description:
    """Read a prepared log once.

    Raises:
        DataError: a file is missing or damaged.
    """
    histories = prepared.histories()
    counts = np.zeros(histories.num_items + 1, dtype=np.int64)
    for items in histories.sequences:
        np.add.at(counts, items, 1)
    span = None
    if histories.timestamps is not None:
        # A 0 stands for "before the log", where a format knows of such events.
        ends = [(at[at > 0][[0, -1]]) for at in histories.timestamps if at[-1] > 0]
        span = (min(int(first) for first, _ in ends), max(int(last) for _, last in ends)) if ends else None
    return Description(
        num_users=histories.num_users,
        num_items=histories.num_items,
        num_interactions=int(histories.lengths.sum()),
        lengths_U=histories.lengths,
        counts_I=counts[1:],
        first=_moment(span[0]) if span else None,
        last=_moment(span[1]) if span else None,
    )


def plot(description: Description, to: Path, *, title: str) -> None:
    """Draw the lengths of histories and the popularity of items.

    Args:
        description: of a log.
        to: the picture to write, ``.png`` or what else matplotlib writes.
        title: above it.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'recparallel[plots]'") from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    lengths, popularity = figure.subplots(1, 2)
    edges = np.geomspace(1, max(2, description.lengths_U.max()), 40)
    lengths.hist(description.lengths_U, bins=np.unique(np.round(edges)), color="#4477aa")
    lengths.set(xscale="log", xlabel="length of a history", ylabel="users")
    popularity.plot(np.arange(1, description.num_items + 1), np.sort(description.counts_I)[::-1], color="#aa3377")
    popularity.set(xscale="log", yscale="log", xlabel="item, by popularity", ylabel="interactions")
    figure.suptitle(
        f"{title}: {description.num_users:,} users, {description.num_items:,} items, "
        f"{description.num_interactions:,} interactions"
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=120)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc)
