"""Which core each rank runs on.

Left to the scheduler, ranks with limits meet on one core in one run and not in the next, and the same pipeline differs
by 8 % between two launches. Bound to cores whose shares add up, it does not.
"""

from collections.abc import Sequence

from benchmarks.cluster.description import ClusterSpec

_ROUNDING = 1e-9


def place_on_cores(spec: ClusterSpec, cores: Sequence[int]) -> dict[int, int]:
    """A core for every rank, so that the shares on each core add up to one at most.

    The largest share goes first, to the emptiest core. A rank counts with the largest share that it ever has, changes in
    mid-run included.

    Args:
        spec: the cluster.
        cores: the numbers of those that may be used.

    Returns:
        Core by rank; empty where that cannot be: a rank without a limit, with more than one core, or too many of them.
    """
    shares = [_largest_share(spec, spec.node_of(rank)) for rank in range(spec.world_size)]
    used = dict.fromkeys(cores, 0.0)
    placed: dict[int, int] = {}
    for rank in sorted(range(spec.world_size), key=lambda rank: -(shares[rank] or 0.0)):
        share = shares[rank]
        core = min(used, key=lambda core: used[core], default=None)
        if share is None or core is None or used[core] + share > 1 + _ROUNDING:
            return {}
        placed[rank] = core
        used[core] += share
    return placed


def _largest_share(spec: ClusterSpec, node: int) -> float | None:
    changed = [c.cpu for c in spec.changes if c.node == node and "cpu" in c.model_fields_set]
    shares = [spec.limits(node).cpu, *changed]
    return None if None in shares else max(share or 0.0 for share in shares)
