"""Is one way to train as good as another? Paired over users and seeds.

Shapes: S seeds, U users, R resamples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recparallel.errors import ConfigError, DataError

_AT_ONCE = 500
"""Resamples; each takes as many numbers as there are users."""


@dataclass(frozen=True)
class Comparison:
    """A mean over users and seeds against that of a base, and how sure that is.

    Attributes:
        mean, base: of both.
        change: ``mean / base - 1``.
        low, high: of the change, between which it lies with the confidence that was asked for.
        margin: below which a loss does not count.
    """

    mean: float
    base: float
    change: float
    low: float
    high: float
    margin: float

    @property
    def is_not_inferior(self) -> bool:
        """The loss is smaller than the margin, at half of what was left to chance."""
        return self.low > -self.margin


def ndcg_gains(ranks: Tensor, k: int) -> Tensor:
    """Of each user, in the shape of ``ranks`` (1-based): ``1 / log2(rank + 1)``, 0 behind ``k``; NDCG@k is their mean."""
    return torch.where(ranks <= k, 1 / torch.log2(ranks.double() + 1), 0.0)


def compare_paired(
    gains_SU: Tensor, base_SU: Tensor, *, margin: float = 0.03, confidence: float = 0.9, resamples: int = 10_000
) -> Comparison:
    """Bootstrap of users and of seeds: each resample draws users, the same for both sides, and seeds, with replacement.

    A side is not inferior at 95 % if the lower end of its interval of 90 % lies above the margin.

    Args:
        gains_SU, base_SU: what each user adds to a metric, under each seed; the same users and seeds.
        margin: share of the base.
        confidence: of the interval, in (0, 1).
        resamples: R.

    Raises:
        DataError: shapes differ, or there is nothing to compare with.
        ConfigError: margin, confidence or resamples are out of range.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 14.
    """
    if gains_SU.shape != base_SU.shape or gains_SU.dim() != 2 or not gains_SU.numel():
        raise DataError(f"gains of {tuple(gains_SU.shape)} against {tuple(base_SU.shape)}; both must be (seeds, users)")
    if not base_SU.any():
        raise DataError("the base has no gain at all: there is nothing to lose")
    if not 0 < confidence < 1 or margin <= 0 or resamples < 1:
        raise ConfigError(
            f"confidence must lie in (0, 1), margin and resamples be above 0, got {confidence}, {margin} and {resamples}"
        )
    ours, theirs = gains_SU.double().numpy(), base_SU.double().numpy()
    changes = np.concatenate(
        [
            _changes(ours, theirs, np.random.default_rng([seed, resamples]), min(_AT_ONCE, resamples - begin))
            for seed, begin in enumerate(range(0, resamples, _AT_ONCE))
        ]
    )
    low, high = np.quantile(changes, [(1 - confidence) / 2, (1 + confidence) / 2])
    mean, base = float(ours.mean()), float(theirs.mean())
    return Comparison(mean, base, mean / base - 1, float(low), float(high), margin)


def _changes(
    ours_SU: NDArray[np.float64], theirs_SU: NDArray[np.float64], random: np.random.Generator, count: int
) -> NDArray[np.float64]:
    """Of ``count`` resamples."""
    seeds, users = ours_SU.shape
    times_RU = random.multinomial(users, np.full(users, 1 / users), size=count).astype(np.float64)
    times_RS = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)
    sums = [((times_RU @ side_SU.T) * times_RS).sum(axis=1) for side_SU in (ours_SU, theirs_SU)]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of users without any gain tells nothing
        changes = sums[0] / sums[1] - 1
    return np.where(np.isfinite(changes), changes, -1.0)
