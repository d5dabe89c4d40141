"""The clusters that benchmarks run on, by name."""

from pathlib import Path

from benchmarks.cluster.description import ClusterSpec, Override, load_cluster
from recparallel.errors import UnknownNameError

CLUSTERS: dict[str, ClusterSpec] = {
    spec.name: spec
    for spec in (
        ClusterSpec(name="flat", nodes=4, cpu=0.5, link_mbit=200),
        ClusterSpec(name="two_tier", nodes=2, ranks_per_node=2, cpu=0.5, link_mbit=200),
        ClusterSpec(
            name="mixed", nodes=4, cpu=0.5, link_mbit=200, overrides={2: Override(cpu=0.25), 3: Override(link_mbit=50)}
        ),
        ClusterSpec(name="fast", nodes=4, cpu=0.5),
        ClusterSpec(name="narrow", nodes=4, cpu=0.5, link_mbit=50),
        ClusterSpec(name="eight", nodes=8, cpu=0.25, link_mbit=200),
    )
}
"""``fast`` has no rate limit; ``mixed`` has node 2 at half the CPU and node 3 on a slow link."""


def get_cluster(name: str) -> ClusterSpec:
    """A named cluster, or the one that a ``.yaml`` / ``.yml`` file describes.

    Raises:
        UnknownNameError: no cluster has this name; the message lists those that exist and the nearest.
        ConfigError: the file is missing or wrong.
    """
    if name.endswith((".yaml", ".yml")):
        return load_cluster(Path(name))
    if name not in CLUSTERS:
        raise UnknownNameError("cluster", name, CLUSTERS, where="--cluster, or a path that ends in .yaml")
    return CLUSTERS[name]
