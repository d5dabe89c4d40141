"""Choose the way in which replicas exchange a bucket, from what each way takes on these machines.

Pure functions; :mod:`recparallel.planning.automatic` measures and exchanges.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """One exchange that was timed.

    Attributes:
        size: elements of the bucket.
        seconds: of the slowest rank.
    """

    size: int
    seconds: float


@dataclass(frozen=True)
class ExchangeTime:
    """Seconds of an exchange: ``latency_seconds + seconds_per_element · size``."""

    latency_seconds: float
    seconds_per_element: float

    def seconds(self, size: int) -> float:
        """That a bucket of ``size`` elements takes."""
        return self.latency_seconds + self.seconds_per_element * size


@dataclass(frozen=True)
class Choice:
    """What was decided for buckets of one size.

    Attributes:
        size: elements.
        way: that is taken.
        predicted_seconds: by it.
    """

    size: int
    way: str
    predicted_seconds: float


def fit(small: Reading, large: Reading) -> ExchangeTime:
    """The line through two readings; neither part of it is negative.

    Raises:
        ValueError: the sizes are not in order.
    """
    if not 0 < small.size < large.size:
        raise ValueError(f"a line needs two sizes in order, got {small.size} and {large.size}")
    slope = max(0.0, (large.seconds - small.seconds) / (large.size - small.size))
    return ExchangeTime(max(0.0, min(small.seconds, large.seconds - slope * large.size)), slope)


def choose(size: int, times: Mapping[str, ExchangeTime], *, min_gain: float) -> Choice:
    """The way for buckets of ``size`` elements.

    Args:
        times: of each way; the first loses nothing, and each loses more than the one before.
        min_gain: share of the seconds that a way must save to be taken in place of one that loses less.

    Example:
        >>> times = {"none": ExchangeTime(0.0, 4e-8), "int8": ExchangeTime(1e-3, 1e-8)}
        >>> choose(10**6, times, min_gain=0.1).way, choose(1000, times, min_gain=0.1).way
        ('int8', 'none')
    """
    ways = list(times)
    best = ways[0]
    for way in ways[1:]:
        if times[way].seconds(size) < (1 - min_gain) * times[best].seconds(size):
            best = way
    return Choice(size, best, times[best].seconds(size))


def has_drifted(predicted: float, measured: float, *, tolerance: float) -> bool:
    """Whether an exchange took another time than predicted, by more than the factor ``tolerance`` either way."""
    return not predicted / tolerance <= measured <= predicted * tolerance
