"""What a cluster cannot do faster, by arithmetic: the limits beside which every measurement is put."""

from benchmarks.cluster.description import ClusterSpec

PAYLOAD_SHARE = 1448 / 1514
"""Bytes of data in a full Ethernet frame of TCP (MTU 1500, timestamps) over the frame's bytes, which the link's rate counts."""


def ring_all_reduce_seconds(spec: ClusterSpec, num_bytes: int) -> float:
    """Least time of a ring all-reduce over all ranks, from link rates alone.

    Each rank sends ``2 (n - 1) / n`` times the tensor to the next one. Ranks stand in the ring in the order of their
    numbers, so that of a node's ranks only the last one sends over the link (and only the first one receives); the
    other hops cross the node's loopback and cost nothing here. The slowest link sets the pace.

    Args:
        spec: the cluster.
        num_bytes: bytes of the tensor on each rank. Frame headers are not counted: data at the link's rate is the
            bound.

    Returns:
        Seconds; 0 where no link is limited.
    """
    n = spec.world_size
    sent_by_rank = 2 * (n - 1) / n * num_bytes
    return max(
        (
            _crossings(spec, node) * sent_by_rank / (rate * 1e6 / 8)
            for node in range(spec.nodes)
            if (rate := spec.limits(node).link_mbit) is not None
        ),
        default=0.0,
    )


def _crossings(spec: ClusterSpec, node: int) -> int:
    """Ring hops that leave ``node``: one, unless it is alone."""
    n = spec.world_size
    return sum(spec.node_of((rank + 1) % n) != node for rank in spec.ranks_of(node))


def compute_seconds(work_core_seconds: float, spec: ClusterSpec) -> float:
    """Least time of work that could be spread over all ranks perfectly.

    Args:
        work_core_seconds: CPU seconds that the whole work takes on one unlimited core, measured.
        spec: the cluster.

    Returns:
        Seconds.

    Raises:
        ValueError: a rank of the cluster has no CPU limit, so that its cores are not known.
    """
    cores = spec.total_cores
    if cores is None:
        raise ValueError(f"cluster {spec.name}: no compute bound, because a rank has no CPU limit (key `cpu`)")
    return work_core_seconds / cores


def network_seconds(spec: ClusterSpec, sent_bytes: dict[int, float]) -> float:
    """Least time to send what each node sends.

    Args:
        spec: the cluster.
        sent_bytes: bytes over the link, by node.

    Returns:
        Seconds of the busiest link; 0 where no link is limited.
    """
    return max(
        (
            sent / (rate * 1e6 / 8)
            for node, sent in sent_bytes.items()
            if (rate := spec.limits(node).link_mbit) is not None
        ),
        default=0.0,
    )
