"""On what a result was measured: machine, versions, command. No host names and no absolute paths."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_PACKAGES = ("recparallel", "torch", "deepspeed", "transformers")


class Environment(BaseModel):
    """The conditions of a measurement.

    Attributes:
        machine: the CPU's model.
        cores: those that this process may use.
        memory_gib: of the machine.
        system: kernel and architecture.
        versions: of Python and of the packages that matter; read without importing them.
        command: the command line.
        emulated: false for plain local processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: str
    cores: int
    memory_gib: float
    system: str
    versions: dict[str, str]
    command: str
    emulated: bool

    def comparable(self, other: "Environment") -> bool:
        """Whether readings of both may stand in one row: all is equal but the command."""
        return self.model_copy(update={"command": ""}) == other.model_copy(update={"command": ""})


def capture_environment(command: str, *, emulated: bool) -> Environment:
    """The conditions here and now.

    Args:
        command: the command line; directories above the current one and the home directory are cut out of it.
        emulated: whether ranks run on an emulated cluster.
    """
    return Environment(
        machine=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        versions={"python": platform.python_version(), **_versions()},
        command=_without_places(command),
        emulated=emulated,
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _without_places(command: str) -> str:
    """The command with every absolute path cut down to its last part."""
    return " ".join(Path(word).name if word.startswith(("/", "~")) else word for word in command.split())
