"""Among which items a target is ranked. A metric says little without it: sampled ranking, or ranking that leaves seen items
in, changes HR@10 and NDCG@10 of one model two- to fourfold."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparallel.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """How targets are ranked. Ties are against the target, always.

    Attributes:
        num_sampled: the target's rivals are so many items, drawn for each user without replacement, all equally likely;
            None: all items are (full ranking). Sampled metrics are no estimates of the full ones, and may order two models
            differently (Krichene & Rendle, "On sampled metrics for item recommendation", KDD 2020).
        filter_seen: items that the user has had before the target are no rivals.
        seed: of the draws, which are the same for each model.
    """

    num_sampled: int | None = None
    filter_seen: bool = True
    seed: int = 0

    @classmethod
    def parse(cls, ranking: str, *, filter_seen: bool = True, seed: int = 0) -> "Protocol":
        """From ``"full"`` or ``"sampled-100"``.

        Raises:
            ConfigError: it is neither.
        """
        if ranking == "full":
            return cls(None, filter_seen, seed)
        match = re.fullmatch(r"sampled-([1-9][0-9]*)", ranking)
        if match is None:
            raise ConfigError(f"ranking {ranking!r}; allowed are full, and sampled-N such as sampled-100")
        return cls(int(match[1]), filter_seen, seed)

    @property
    def among_listed(self) -> bool:
        """Whether what :meth:`listed` gives are the rivals, and not what is left out of them."""
        return self.num_sampled is not None

    def listed(self, user: int, target: int, seen: NDArray[Any], num_items: int) -> NDArray[np.int64]:
        """Items of one row: those left out in full ranking, the rivals in sampled ranking (at most those that there are)."""
        left_out = seen if self.filter_seen else seen[:0]
        if self.num_sampled is None:
            return left_out.astype(np.int64)
        generator = np.random.default_rng([self.seed, user])
        no_rival = np.unique(np.append(left_out, target))
        if num_items < 4 * (self.num_sampled + len(no_rival)):
            rivals = np.setdiff1d(np.arange(1, num_items + 1), no_rival)
            return generator.permutation(rivals)[: self.num_sampled].astype(np.int64)
        # Few of a large catalogue: what is drawn twice, or is no rival, is rare.
        drawn = np.zeros(0, dtype=np.int64)
        while len(drawn) < self.num_sampled:
            more = generator.integers(1, num_items + 1, size=2 * self.num_sampled)
            drawn = np.concatenate([drawn, more[~np.isin(more, no_rival)]])
            drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
        return drawn[: self.num_sampled]

    def __str__(self) -> str:
        what = (
            "full ranking over the catalogue"
            if self.num_sampled is None
            else f"ranking among {self.num_sampled} sampled items"
        )
        seen = "seen items filtered out" if self.filter_seen else "seen items left in"
        return f"{what}, {seen}, ties against the target"


FULL = Protocol()
