"""Where ranks run: on emulated nodes, or as plain local processes."""

import contextlib
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.cluster.cleanup import remove
from benchmarks.cluster.cpu import find_cgroups
from benchmarks.cluster.description import ClusterSpec
from benchmarks.cluster.network import INTERFACE, Counters, Network
from benchmarks.cluster.rights import missing_rights
from benchmarks.cluster.watchdog import Watchdog
from benchmarks.errors import RightsError
from benchmarks.rank import read_usage

_FIRST_PORT = 29_500


class Site(Protocol):
    """The machine side of a cluster."""

    emulated: bool
    interface: str

    def open(self) -> None:
        """Make what is needed."""

    def close(self) -> None:
        """Remove it."""

    def reset(self) -> None:
        """Set every limit as described; a former run may have changed it."""

    def set_cpu(self, node: int, cores: float | None) -> bool:
        """Limit each rank of a node; false where there are no limits."""

    def set_link(self, node: int, mbit: float | None) -> bool:
        """Limit a node's link; false where there are no limits."""

    def address(self, node: int) -> str:
        """A node's address."""

    def new_port(self) -> int:
        """A port for rank 0 that no former run has used."""

    def wrap(self, rank: int, command: Sequence[str], *, core: int | None = None) -> list[str]:
        """The command that runs ``command`` as ``rank``, with its limits, on one core if given."""

    def counters(self, node: int) -> Counters | None:
        """Bytes so far, or ``None``."""

    def cpu_seconds(self, rank: int) -> float | None:
        """CPU time so far of everything that ran as ``rank``, or ``None``."""

    def usage_file(self, rank: int) -> Path | None:
        """The file with that time, or ``None``."""


class EmulatedSite:
    """Namespaces, limited links and CPU groups.

    Args:
        spec: the cluster.
        name: the run's name.
    """

    emulated = True
    interface = INTERFACE

    def __init__(self, spec: ClusterSpec, name: str) -> None:
        self._spec = spec
        self._name = name
        self._ports = iter(range(_FIRST_PORT, 60_000))
        self._nsenter = shutil.which("nsenter") or "nsenter"
        self._taskset = shutil.which("taskset")
        self._watchdog: Watchdog | None = None
        missing = missing_rights()
        groups = find_cgroups()
        if missing or groups is None:
            raise RightsError(missing)
        self._groups = groups
        self._network = Network(name, spec.nodes)

    def open(self) -> None:
        self._watchdog = Watchdog(self._name)
        for rank in range(self._spec.world_size):
            self._groups.create(self._group(rank))
        self._network.create()
        self.reset()

    def close(self) -> None:
        try:
            remove(self._name)
        finally:
            if self._watchdog:
                self._watchdog.close()

    def reset(self) -> None:
        for node in range(self._spec.nodes):
            limits = self._spec.limits(node)
            self.set_cpu(node, limits.cpu)
            self.set_link(node, limits.link_mbit)

    def set_cpu(self, node: int, cores: float | None) -> bool:
        for rank in self._spec.ranks_of(node):
            self._groups.set_limit(self._group(rank), cores)
        return True

    def set_link(self, node: int, mbit: float | None) -> bool:
        self._network.set_rate(node, mbit)
        return True

    def address(self, node: int) -> str:
        return self._network.address(node)

    def new_port(self) -> int:
        # The namespaces are ours alone; another number each time avoids a port that a former run left waiting.
        return next(self._ports)

    def wrap(self, rank: int, command: Sequence[str], *, core: int | None = None) -> list[str]:
        # A shell joins the groups and then becomes the command: no code of ours runs between fork and exec.
        files = self._groups.members(self._group(rank))
        join = "".join(f"echo $$ > {file} || exit 125; " for file in files)
        namespace = f"--net=/run/netns/{self._network.namespace(self._spec.node_of(rank))}"
        bound = [] if core is None or self._taskset is None else [self._taskset, "-c", str(core)]
        return ["/bin/sh", "-c", f'{join}exec "$@"', "sh", *bound, self._nsenter, namespace, "--", *command]

    def counters(self, node: int) -> Counters | None:
        return self._network.counters(node)

    def cpu_seconds(self, rank: int) -> float | None:
        return read_usage(self._groups.usage_file(self._group(rank)))

    def usage_file(self, rank: int) -> Path | None:
        return self._groups.usage_file(self._group(rank))

    def cpu_limit(self, rank: int) -> float | None:
        """The CPU limit in force, read back from the kernel."""
        return self._groups.limit(self._group(rank))

    def link_rates(self, node: int) -> tuple[float | None, float | None]:
        """The link limits in force, read back from the kernel: Mbit/s out of the node and into it."""
        return self._network.rates(node)

    def _group(self, rank: int) -> str:
        return f"{self._name}-r{rank}"


class LocalSite:
    """Plain processes on this machine, without any limit."""

    emulated = False
    interface = "lo"

    def __init__(self, name: str) -> None:
        self._name = name
        self._watchdog: Watchdog | None = None

    def open(self) -> None:
        self._watchdog = Watchdog(self._name)

    def close(self) -> None:
        try:
            remove(self._name)
        finally:
            if self._watchdog:
                self._watchdog.close()

    def reset(self) -> None:
        return

    def set_cpu(self, node: int, cores: float | None) -> bool:
        return False

    def set_link(self, node: int, mbit: float | None) -> bool:
        return False

    def address(self, node: int) -> str:
        return "127.0.0.1"

    def new_port(self) -> int:
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def wrap(self, rank: int, command: Sequence[str], *, core: int | None = None) -> list[str]:
        return list(command)

    def counters(self, node: int) -> Counters | None:
        return None

    def cpu_seconds(self, rank: int) -> float | None:
        return None

    def usage_file(self, rank: int) -> Path | None:
        return None
