"""``python -m benchmarks.hold CLUSTER``: hold a cluster with sleeping ranks until stopped, to look at it or to kill it."""

import argparse
import sys

from benchmarks.cluster import Cluster
from benchmarks.clusters import get_cluster


def main() -> None:
    """Print the run's name once its ranks run, and wait."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hold")
    parser.add_argument("cluster")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--seconds", type=int, default=3600)
    given = parser.parse_args()
    with Cluster(get_cluster(given.cluster), local=given.local) as cluster:
        # The second process shows that what a rank starts is found too, although it leads a session of its own.
        command = f"setsid sleep {given.seconds} & echo ready; exec sleep {given.seconds}"
        ready: set[int] = set()

        def show(rank: int, line: str) -> None:
            ready.add(rank)
            if len(ready) == cluster.spec.world_size:
                sys.stdout.write(f"{cluster.name}\n")
                sys.stdout.flush()

        cluster.run(["sh", "-c", command], show=show)


if __name__ == "__main__":
    main()
