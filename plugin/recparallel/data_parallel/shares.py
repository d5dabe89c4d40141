"""How many rows of a global batch each replica gets: as many as it can do while the others do theirs."""

import heapq
from collections.abc import Sequence

from recparallel.errors import ConfigError


def rows_by_speed(seconds: Sequence[float], total: int) -> list[int]:
    """Rows by replica, at least one each, with which the slowest replica is done the soonest.

    The next row goes to the replica that would be done with it the soonest, which is optimal where each row of a replica takes as
    long as its others (the greedy algorithm for one resource: Ibaraki & Katoh, "Resource allocation problems", 1988).

    Args:
        seconds: that a row takes each replica, above 0.
        total: of rows, at least one a replica.

    Raises:
        ConfigError: there are fewer rows than replicas, or a replica takes no time.

    Example:
        >>> rows_by_speed([0.1, 0.1, 0.2], 10)
        [4, 4, 2]
    """
    if total < len(seconds) or not seconds or min(seconds) <= 0:
        raise ConfigError(f"{total} rows cannot be shared among replicas that take {list(seconds)} seconds a row")
    rows = [1] * len(seconds)
    done = [(2 * own, number) for number, own in enumerate(seconds)]
    heapq.heapify(done)
    for _ in range(total - len(seconds)):
        _, number = done[0]
        rows[number] += 1
        heapq.heapreplace(done, ((rows[number] + 1) * seconds[number], number))
    return rows
