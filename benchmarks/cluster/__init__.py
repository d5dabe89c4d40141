"""An emulated cluster on one Linux machine: what it is, how to start ranks on it, and what comes back.

Example:
    >>> from benchmarks.cluster import Cluster, ClusterSpec
    >>> spec = ClusterSpec(name="pair", nodes=2, cpu=0.5, link_mbit=100)
    >>> with Cluster(spec) as cluster:  # doctest: +SKIP
    ...     result = cluster.run(["python", "train.py"], timeout=600).check()
    >>> [rank.cpu_seconds for rank in result.ranks]  # doctest: +SKIP
"""

from benchmarks.cluster.cleanup import remove_leftovers
from benchmarks.cluster.description import Change, ClusterSpec, Override, load_cluster
from benchmarks.cluster.emulation import Cluster
from benchmarks.cluster.outcome import AppliedChange, NodeResult, RankResult, RunResult
from benchmarks.cluster.rank_environment import RankPlace
from benchmarks.cluster.rights import missing_rights

__all__ = [
    "AppliedChange",
    "Change",
    "Cluster",
    "ClusterSpec",
    "NodeResult",
    "Override",
    "RankPlace",
    "RankResult",
    "RunResult",
    "load_cluster",
    "missing_rights",
    "remove_leftovers",
]
