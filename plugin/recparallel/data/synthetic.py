"""Generate a log that looks like MovieLens-100K and that a sequence model can learn from.

Three forces choose the next item: popularity (Zipf), the user's taste (a few preferred genres), and drift (a successor
of the current item). The first two are what a popularity count and matrix factorization see; drift is visible in the
order alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recparallel.data.readers.movielens_100k import GENRES
from recparallel.errors import ConfigError

# fmt: off
_ADJECTIVES = (
    "Silent", "Crimson", "Hidden", "Broken", "Golden", "Distant", "Electric", "Forgotten", "Midnight", "Paper",
    "Velvet", "Hollow", "Burning", "Frozen", "Lonely", "Restless", "Secret", "Northern", "Stolen", "Gentle",
    "Wicked", "Endless", "Painted", "Wandering", "Iron", "Scarlet", "Quiet", "Savage", "Borrowed", "Invisible",
    "Last", "Second",
)
_NOUNS = (
    "Harbor", "Garden", "Letter", "Horizon", "Machine", "Orchard", "Passenger", "Winter", "Mirror", "Carnival",
    "Lighthouse", "Détective", "Café", "Señora", "Empire", "River", "Promise", "Stranger", "Shadow", "Kingdom",
    "Telegram", "Voyage", "Daughter", "Circus", "Engine", "Island", "Masquerade", "Piano", "Frontier", "Alibi",
    "Comet", "Über-Agent",
)
# fmt: on
_FIRST_YEAR, _NUM_YEARS = 1930, 69
_FIRST_SECOND = 874_724_710
_NUM_SUCCESSORS = 6


@dataclass(frozen=True)
class _Catalogue:
    """``I`` items.

    Args:
        genres: flags, ``(I, 19)``.
        log_popularity: unnormalized log weights, ``(I,)``.
        successors: for each item, the items that drift leads to.
    """

    genres: NDArray[np.bool_]
    log_popularity: NDArray[np.float64]
    successors: list[list[int]]


def write_synthetic(
    folder: Path,
    *,
    seed: int = 0,
    num_users: int = 1500,
    num_items: int = 600,
    min_events: int = 30,
    max_events: int = 80,
    drift: float = 0.6,
) -> None:
    """Write ``u.data`` and ``u.item`` in MovieLens-100K's format (latin-1) into ``folder``, which is made if need be.

    The same arguments give the same bytes. No user meets an item twice, and a user's timestamps are all different; the
    rows of ``u.data`` are in random order, as in the original. Items that nobody met are in ``u.item`` all the same.

    Args:
        folder: where the two files go.
        seed: of everything.
        num_users: users, named from 1.
        num_items: items, named from 1.
        min_events: fewest events of a user.
        max_events: most events of a user, at most ``num_items``.
        drift: probability that the next item is a successor of the current one, rather than one to the user's taste.

    Raises:
        ConfigError: the sizes do not go together, or ``drift`` is not a probability.
    """
    if num_users < 1 or not 1 <= min_events <= max_events <= num_items or num_items <= _NUM_SUCCESSORS:
        raise ConfigError(
            f"a synthetic log needs num_users >= 1, 1 <= min_events <= max_events <= num_items and "
            f"num_items > {_NUM_SUCCESSORS}; "
            f"got num_users={num_users}, min_events={min_events}, max_events={max_events}, num_items={num_items}"
        )
    if not 0 <= drift <= 1:
        raise ConfigError(f"drift must be a probability from 0 to 1, got {drift}")
    generator = np.random.default_rng(seed)
    catalogue = _make_catalogue(generator, num_items=num_items)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u.item").write_bytes(_format_items(generator, catalogue).encode("latin-1"))
    rows = [
        row
        for user in range(num_users)
        for row in _user_rows(
            generator,
            catalogue,
            user=user + 1,
            num_events=int(generator.integers(min_events, max_events + 1)),
            drift=drift,
        )
    ]
    shuffled = [rows[i] for i in generator.permutation(len(rows))]
    (folder / "u.data").write_bytes("".join(shuffled).encode("latin-1"))


def _make_catalogue(generator: np.random.Generator, *, num_items: int) -> _Catalogue:
    genres = np.zeros((num_items, len(GENRES)), dtype=bool)
    main = generator.integers(1, len(GENRES), size=num_items)  # 0 is "unknown"
    other = generator.integers(1, len(GENRES), size=num_items)
    has_other = generator.random(num_items) < 0.5
    genres[np.arange(num_items), main] = True
    genres[np.flatnonzero(has_other), other[has_other]] = True
    log_popularity = -0.9 * np.log1p(generator.permutation(num_items))
    # Successors share a genre where there are enough such items, and are popular no more than the square root of their
    # weight: drift would otherwise say little more than popularity does.
    affinity = 0.5 * log_popularity + 4.0 * (genres.astype(np.int64) @ genres.T.astype(np.int64) > 0)
    affinity = affinity + generator.gumbel(size=(num_items, num_items))
    np.fill_diagonal(affinity, -np.inf)
    successors = np.argsort(-affinity, axis=1, kind="stable")[:, :_NUM_SUCCESSORS]
    return _Catalogue(genres, log_popularity, successors.tolist())


def _user_rows(
    generator: np.random.Generator, catalogue: _Catalogue, *, user: int, num_events: int, drift: float
) -> list[str]:
    liked = generator.choice(np.arange(1, len(GENRES)), size=3, replace=False)
    to_taste = catalogue.genres[:, liked].any(axis=1)
    weights = catalogue.log_popularity + 2.0 * to_taste
    # Sorted by weight plus Gumbel noise, the items are in the order of draws without replacement.
    taste = iter(np.argsort(-(weights + generator.gumbel(size=len(weights))), kind="stable").tolist())
    drifts = (generator.random(num_events) < drift).tolist()
    orders = generator.permuted(np.tile(np.arange(_NUM_SUCCESSORS), (num_events, 1)), axis=1).tolist()
    seconds = (
        _FIRST_SECOND + generator.integers(0, 10_000_000) + np.cumsum(generator.integers(20, 4_000, size=num_events))
    )
    ratings = generator.integers(1, 5, size=num_events)

    is_liked = to_taste.astype(int).tolist()
    rows: list[str] = []
    met: set[int] = set()
    item = -1
    for drifting, order, second, rating in zip(drifts, orders, seconds.tolist(), ratings.tolist()):
        fresh = [catalogue.successors[item][i] for i in order] if drifting and met else []
        item = next((successor for successor in fresh if successor not in met), -1)
        if item < 0:
            item = next(candidate for candidate in taste if candidate not in met)
        met.add(item)
        rows.append(f"{user}\t{item + 1}\t{rating + is_liked[item]}\t{second}\n")
    return rows


def _format_items(generator: np.random.Generator, catalogue: _Catalogue) -> str:
    num_items = len(catalogue.genres)
    num_titles = len(_ADJECTIVES) * len(_NOUNS)
    picks = generator.permutation(num_titles).tolist()
    years = (_FIRST_YEAR + generator.integers(0, _NUM_YEARS, size=num_items)).tolist()
    lines = []
    for item, genres in enumerate(catalogue.genres.tolist()):
        sequel, pick = divmod(item, num_titles)
        title = f"The {_ADJECTIVES[picks[pick] // len(_NOUNS)]} {_NOUNS[picks[pick] % len(_NOUNS)]}"
        title += f" {sequel + 1}" if sequel else ""
        flags = "|".join("1" if flag else "0" for flag in genres)
        lines.append(f"{item + 1}|{title} ({years[item]})|01-Jan-{years[item]}|||{flags}\n")
    return "".join(lines)
