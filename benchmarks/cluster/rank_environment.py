"""What a rank finds in its environment: what torch and DeepSpeed's multi-node launchers set, and our own files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.description import ClusterSpec
from benchmarks.cluster.names import MARK
from benchmarks.rank import CORES, PROGRESS, REPORT, USAGE

# A launcher around us may have set these; what it meant is not what holds inside the cluster.
_FOREIGN = ("TORCHELASTIC_", "OMPI_", "PMI_", "SLURM_")


@dataclass(frozen=True)
class RankPlace:
    """Where a rank runs; what a command that differs by rank is made from.

    Attributes:
        rank, local_rank, node: its numbers.
        world_size: number of ranks.
        address: the address of its node.
        master_address, master_port: where rank 0 listens.
        interface: the network interface for gloo.
    """

    rank: int
    local_rank: int
    node: int
    world_size: int
    address: str
    master_address: str
    master_port: int
    interface: str


@dataclass(frozen=True)
class RankFiles:
    """The files by which a rank and the run speak: steps reached, a report at the end, CPU time used so far."""

    progress: Path
    report: Path
    usage: Path | None


def rank_environment(
    spec: ClusterSpec,
    place: RankPlace,
    files: RankFiles,
    *,
    owner: str,
    base: Mapping[str, str],
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment of one rank.

    Args:
        spec: the cluster.
        place: the rank's place in it.
        files: its files.
        owner: the run's name, by which the rank is found and killed if the run dies.
        base: the environment of the run; what launchers set in it is dropped.
        extra: the caller's own variables; they win over everything.
    """
    threads = str(spec.threads)
    cores = None if files.usage is None else spec.limits(place.node).cpu
    kept = {key: value for key, value in base.items() if not key.startswith(_FOREIGN)}
    return {
        **kept,
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(spec.ranks_per_node),
        # DeepSpeed's names: of ranks on this node, of this node, of all nodes. It takes its shared-memory path where
        # LOCAL_SIZE is the world size, so that a wrong value here would bypass the network.
        "LOCAL_SIZE": str(spec.ranks_per_node),
        "CROSS_RANK": str(place.node),
        "CROSS_SIZE": str(spec.nodes),
        "GROUP_RANK": str(place.node),
        "MASTER_ADDR": place.master_address,
        "MASTER_PORT": str(place.master_port),
        "GLOO_SOCKET_IFNAME": place.interface,
        "TP_SOCKET_IFNAME": place.interface,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
        # A rank that hangs is asked for its stacks by SIGABRT.
        "PYTHONFAULTHANDLER": "1",
        MARK: owner,
        PROGRESS: str(files.progress),
        REPORT: str(files.report),
        CORES: "" if cores is None else str(cores),
        USAGE: "" if files.usage is None else str(files.usage),
        **extra,
    }
