"""CPU shares by the kernel's control groups: one group for each rank, so that its limit and its CPU seconds are its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.cluster.names import new_name
from benchmarks.errors import EmulationError

# A rank of half a core runs 3 ms and waits 3 ms. A rank that has waited may use up to two periods' quota at once: longer periods
# make it faster after a rest than without one (work of 10 ms takes 11 ms then, and not 20, with periods of 10 ms); with shorter
# ones the kernel misses the shares by up to 14 % while all cores are in use.
LEAST_PERIOD_US = 6_000
# What the kernel counts by; it takes no quota below one of these.
TICK_US = 1_000
# Ten times an ordinary process: the quota alone is to hold a rank down, a few other processes on the machine are not.
SHARES_V1, WEIGHT_V2 = 10_240, 1_000


class Cgroups(Protocol):
    """The two versions of control groups, as far as we need them. A group's name is also its folder's."""

    @property
    def roots(self) -> Sequence[Path]:
        """The folders in which groups are made."""

    def obstacles(self) -> list[str]:
        """What keeps us from making groups, one sentence each."""

    def create(self, group: str) -> None:
        """Make an empty group without a limit."""

    def set_limit(self, group: str, cores: float | None) -> None:
        """Limit all processes of the group together to ``cores``; ``None`` lifts the limit."""

    def limit(self, group: str) -> float | None:
        """The limit in force, read back from the kernel."""

    def usage_file(self, group: str) -> Path:
        """The file that tells the CPU time used; :func:`benchmarks.rank.read_usage` reads it."""

    def members(self, group: str) -> list[Path]:
        """The files to which a process writes its number to join."""


@dataclass(frozen=True)
class CgroupsV1:
    """Version 1: the controllers ``cpu`` and ``cpuacct`` have a tree each, often the same one."""

    cpu: Path
    cpuacct: Path

    @property
    def roots(self) -> Sequence[Path]:
        return list(dict.fromkeys([self.cpu, self.cpuacct]))

    def obstacles(self) -> list[str]:
        return [f"the CPU groups in {root} are not writable: run as root" for root in self.roots if not _writable(root)]

    def create(self, group: str) -> None:
        for root in self.roots:
            (root / group).mkdir()
        _write(self.cpu / group / "cpu.shares", str(SHARES_V1))

    def set_limit(self, group: str, cores: float | None) -> None:
        folder = self.cpu / group
        quota, period = quota_and_period(cores)
        # Lifted first: the kernel checks each of the two values against the other one as it stands.
        _write(folder / "cpu.cfs_quota_us", "-1")
        _write(folder / "cpu.cfs_period_us", str(period))
        if quota is not None:
            _write(folder / "cpu.cfs_quota_us", str(quota))

    def limit(self, group: str) -> float | None:
        folder = self.cpu / group
        quota, period = (int((folder / f"cpu.cfs_{part}_us").read_text()) for part in ("quota", "period"))
        return None if quota < 0 else quota / period

    def usage_file(self, group: str) -> Path:
        return self.cpuacct / group / "cpuacct.usage"

    def members(self, group: str) -> list[Path]:
        return [root / group / "cgroup.procs" for root in self.roots]


@dataclass(frozen=True)
class CgroupsV2:
    """Version 2: one tree; the controller ``cpu`` must be handed down to the groups."""

    root: Path

    @property
    def roots(self) -> Sequence[Path]:
        return [self.root]

    def obstacles(self) -> list[str]:
        if not _writable(self.root):
            return [f"the CPU groups in {self.root} are not writable: run as root"]
        try:
            self._hand_down()
        except EmulationError:
            return [
                f"the cgroup v2 controller `cpu` cannot be handed down in {self.root} (in a container, its own processes are in "
                "the way: start it with the host's cgroup namespace, `--cgroupns=host`)"
            ]
        return []

    def create(self, group: str) -> None:
        self._hand_down()
        (self.root / group).mkdir()
        _write(self.root / group / "cpu.weight", str(WEIGHT_V2))

    def set_limit(self, group: str, cores: float | None) -> None:
        quota, period = quota_and_period(cores)
        _write(self.root / group / "cpu.max", f"{'max' if quota is None else quota} {period}")

    def limit(self, group: str) -> float | None:
        quota, period = (self.root / group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)

    def usage_file(self, group: str) -> Path:
        return self.root / group / "cpu.stat"

    def members(self, group: str) -> list[Path]:
        return [self.root / group / "cgroup.procs"]

    def _hand_down(self) -> None:
        control = self.root / "cgroup.subtree_control"
        if "cpu" not in control.read_text().split():
            _write(control, "+cpu")


def find_cgroups(mounts: Path = Path("/proc/self/mounts")) -> CgroupsV1 | CgroupsV2 | None:
    """The control groups of this machine that have a CPU controller, or ``None``.

    A machine may mount both versions; the controller is in one of them.
    """
    v1: dict[str, Path] = {}
    for line in mounts.read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        root = Path(folder)
        if kind == "cgroup2" and "cpu" in _read(root / "cgroup.controllers").split():
            return CgroupsV2(root)
        if kind == "cgroup":
            v1.update({controller: root for controller in ("cpu", "cpuacct") if controller in options.split(",")})
    return CgroupsV1(**v1) if len(v1) == 2 else None


def quota_and_period(cores: float | None) -> tuple[int | None, int]:
    """The quota and the period in microseconds that give ``cores``: the fewest whole ticks in a period that is long enough."""
    if cores is None:
        return None, LEAST_PERIOD_US
    quota = TICK_US * math.ceil(LEAST_PERIOD_US * cores / TICK_US)
    return quota, round(quota / cores)


def _writable(root: Path) -> bool:
    """Whether a group can really be made: a read-only mount, as containers have, also lets root pass `access`."""
    probe = root / f"{new_name()}-probe"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise EmulationError(f"writing {text!r} to {path}: {error.strerror}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
