"""What a cluster is, as data: nodes, CPU shares, link rates, and what changes during a run.

The same keys in YAML and in Python::

    name: mixed
    nodes: 4
    ranks_per_node: 1
    cpu: 0.5              # cores for each rank; null: no limit
    link_mbit: 200        # Mbit/s in each direction of each node's link; null: no limit
    threads: 1            # OMP_NUM_THREADS of each rank
    overrides:
      2: {cpu: 0.25}      # node 2 has half the CPU
      3: {link_mbit: 50}  # node 3 has a slower link
    changes:
      - {at_step: 10, node: 1, cpu: 0.25}
      - {at_step: 20, node: 1, cpu: 0.5}       # and back
      - {at_step: 30, node: 0, link_mbit: 20}
      - {at_step: 40, kill_rank: 3}
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from recparallel.errors import ConfigError

# The kernel takes no quota below 1 ms, and no period above 1 s: 0.01 core is 1 ms of 100 ms.
Cores = Annotated[float, Field(strict=True, ge=0.01, le=256, allow_inf_nan=False)]
Megabits = Annotated[float, Field(strict=True, ge=0.1, le=100_000, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
Index = Annotated[int, Field(strict=True, ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Override(_Frozen):
    """How one node differs. A key left out keeps the cluster's value; ``None`` lifts the limit.

    Attributes:
        cpu: cores for each rank of this node.
        link_mbit: Mbit/s in each direction of this node's link.
    """

    cpu: Cores | None = None
    link_mbit: Megabits | None = None


class Change(_Frozen):
    """One event in mid-run: a node gets another CPU share or link rate, or a rank is killed. Going back is another
    change.

    Attributes:
        at_step: applied as soon as a rank has reported this step or a later one.
        node: the node whose ``cpu`` or ``link_mbit`` changes.
        cpu: cores for each rank of the node from now on; ``None``, when given, lifts the limit.
        link_mbit: Mbit/s in each direction from now on; ``None``, when given, lifts the limit.
        kill_rank: the rank that gets SIGKILL; excludes the other keys.
    """

    at_step: Index
    node: Index | None = None
    cpu: Cores | None = None
    link_mbit: Megabits | None = None
    kill_rank: Index | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        limits = {"cpu", "link_mbit"} & self.model_fields_set
        if self.kill_rank is not None:
            if limits or self.node is not None:
                raise ValueError("`kill_rank` stands alone: allowed beside it is `at_step` only")
        elif self.node is None or not limits:
            raise ValueError("a change needs `node` with `cpu` or `link_mbit`, or `kill_rank`")
        return self

    def __str__(self) -> str:
        if self.kill_rank is not None:
            return f"kill rank {self.kill_rank}"
        parts = []
        if "cpu" in self.model_fields_set:
            parts.append("no CPU limit" if self.cpu is None else f"{self.cpu:g} core a rank")
        if "link_mbit" in self.model_fields_set:
            parts.append("no link limit" if self.link_mbit is None else f"link {self.link_mbit:g} Mbit/s")
        return f"node {self.node}: {', '.join(parts)}"


@dataclass(frozen=True)
class NodeLimits:
    """The limits of one node: cores for each of its ranks, and Mbit/s of its link. ``None`` is no limit."""

    cpu: float | None
    link_mbit: float | None


class ClusterSpec(_Frozen):
    """An emulated cluster. Ranks are numbered node by node, as launchers do.

    Attributes:
        name: what results call it.
        nodes: number of nodes, each with a network namespace of its own.
        ranks_per_node: processes on each node; they talk over the node's loopback, at full speed.
        cpu: cores for each rank (0.5 is half a core), or ``None`` for no limit.
        link_mbit: Mbit/s in each direction of each node's link, or ``None`` for no limit.
        threads: ``OMP_NUM_THREADS`` of every rank.
        overrides: nodes that differ, by number.
        changes: what happens in mid-run, in any order.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    nodes: Annotated[Count, Field(le=64)]
    ranks_per_node: Annotated[Count, Field(le=64)] = 1
    cpu: Cores | None = None
    link_mbit: Megabits | None = None
    threads: Annotated[Count, Field(le=256)] = 1
    overrides: dict[Annotated[int, Field(ge=0)], Override] = {}
    changes: tuple[Change, ...] = ()

    @model_validator(mode="after")
    def _targets_exist(self) -> Self:
        for node in self.overrides:
            self._check("overrides", "node", node, self.nodes)
        for position, change in enumerate(self.changes):
            if change.node is not None:
                self._check(f"changes.{position}", "node", change.node, self.nodes)
            if change.kill_rank is not None:
                self._check(f"changes.{position}.kill_rank", "rank", change.kill_rank, self.world_size)
        return self

    @staticmethod
    def _check(key: str, kind: str, given: int, count: int) -> None:
        if given >= count:
            raise ValueError(f"key `{key}`: no {kind} {given}; allowed are 0 to {count - 1}")

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, where: str = "cluster description") -> Self:
        """Read a description from a mapping.

        Args:
            content: the keys above.
            where: the file or argument it came from, for messages.

        Raises:
            ConfigError: a key or value is not allowed; the message names the key, what was given and what is allowed.
        """
        try:
            return cls.model_validate(dict(content))
        except ValidationError as error:
            raise ConfigError(explain(error, where=where)) from None

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.ranks_per_node

    @property
    def total_cores(self) -> float | None:
        """Cores that all ranks together may use, or ``None`` where one has no limit."""
        shares = [self.limits(node).cpu for node in range(self.nodes)]
        return None if None in shares else sum(share or 0.0 for share in shares) * self.ranks_per_node

    def limits(self, node: int) -> NodeLimits:
        """The limits of ``node`` at the start of a run."""
        override = self.overrides.get(node, Override())
        given = override.model_fields_set
        return NodeLimits(
            cpu=override.cpu if "cpu" in given else self.cpu,
            link_mbit=override.link_mbit if "link_mbit" in given else self.link_mbit,
        )

    def node_of(self, rank: int) -> int:
        """The node that holds ``rank``."""
        return rank // self.ranks_per_node

    def ranks_of(self, node: int) -> range:
        """The ranks on ``node``."""
        return range(node * self.ranks_per_node, (node + 1) * self.ranks_per_node)

    def with_changes(self, *changes: Change) -> "ClusterSpec":
        """The same cluster with these changes in mid-run instead of its own."""
        return ClusterSpec.model_validate(
            {**self.to_dict(), "changes": [c.model_dump(exclude_unset=True) for c in changes]}
        )

    def to_dict(self) -> dict[str, Any]:
        """The description as plain values, as :meth:`parse` reads it."""
        return self.model_dump(exclude_unset=True, mode="json")


def load_cluster(path: str | Path) -> ClusterSpec:
    """Read a cluster from a YAML file.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or says something that is not allowed.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cluster file {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"cluster file {path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"cluster file {path}: holds a {type(content).__name__}, needs a mapping of keys")
    return ClusterSpec.parse(content, where=f"cluster file {path}")


def explain(error: ValidationError, *, where: str) -> str:
    """One line for each mistake: the key, what was given, what is allowed."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"key `{key}` is unknown; {_allowed_keys(item['loc'])}")
        elif item["type"] == "missing":
            lines.append(f"key `{key}` is missing")
        elif key:
            lines.append(f"key `{key}`: given {item['input']!r}; {item['msg']}")
        else:
            lines.append(item["msg"].removeprefix("Value error, "))
    return f"{where}: " + "; ".join(lines)


def _allowed_keys(place: tuple[int | str, ...]) -> str:
    inner: dict[str, type[BaseModel]] = {"overrides": Override, "changes": Change}
    model = inner.get(str(place[0]), ClusterSpec) if len(place) > 1 else ClusterSpec
    known = list(model.model_fields)
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"allowed are {', '.join(known)}." + (f" Did you mean {near[0]!r}?" if near else "")
