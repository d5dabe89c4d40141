"""What emulation needs of the machine and the user, checked before anything is made."""

import shutil
from pathlib import Path

from benchmarks.cluster.cpu import find_cgroups

# Bits of the capability set, from linux/capability.h.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux"}


def missing_rights() -> list[str]:
    """One sentence for each right or tool that is missing; empty where a cluster can be emulated."""
    return [*_missing_tools(), *_missing_capabilities(), *_missing_groups()]


def _missing_tools() -> list[str]:
    return [
        f"the tool `{tool}` is not installed: `apt-get install {package}`, or your system's package of that name"
        for tool, package in _TOOLS.items()
        if shutil.which(tool) is None
    ]


def _missing_capabilities() -> list[str]:
    held = _effective_capabilities()
    use = {"CAP_NET_ADMIN": "links and rates", "CAP_SYS_ADMIN": "network namespaces"}
    return [
        f"no {name}, which {use[name]} need: run as root (in a container: with `--privileged`)"
        for name, bit in _CAPABILITIES.items()
        if not held >> bit & 1
    ]


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _missing_groups() -> list[str]:
    groups = find_cgroups()
    if groups is None:
        return [
            "no control groups with the controllers `cpu` and `cpuacct` (v1) or `cpu` (v2) are mounted under /sys/fs/cgroup"
        ]
    return groups.obstacles()
