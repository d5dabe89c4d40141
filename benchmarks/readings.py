"""Every single reading, on disk as soon as it was made, so that an interrupted benchmark goes on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.environment import Environment
from recparallel.errors import ConfigError


class Reading(BaseModel):
    """One run of one side.

    Attributes:
        workload, cluster, side: what ran, and where.
        round: number of the round; readings of one round are neighbours in time.
        metrics: values by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str
    cluster: str
    side: str
    round: int
    metrics: dict[str, float]


class Readings:
    """Readings in a file of one JSON line each, the first line being the environment.

    Args:
        path: the file; ``None`` keeps readings in memory only.
        environment: where they are made.
        fresh: drop what the file holds.

    Raises:
        ConfigError: the file was written on another machine or with other versions: readings would not compare.
    """

    def __init__(self, path: Path | None, environment: Environment, *, fresh: bool = False) -> None:
        self._path = path
        self._readings: list[Reading] = []
        if path and path.exists() and not fresh:
            self._load(path, environment)
        elif path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(environment.model_dump_json() + "\n")

    @classmethod
    def beside(cls, results: Path | None, environment: Environment, *, fresh: bool = False) -> "Readings":
        """Readings in ``NAME.readings.jsonl`` beside ``NAME.json``."""
        path = results.with_suffix(".readings.jsonl") if results else None
        return cls(path, environment, fresh=fresh)

    def __len__(self) -> int:
        return len(self._readings)

    def has(self, workload: str, cluster: str, side: str, number: int) -> bool:
        """Whether this run has been made."""
        return number in self.by_round(workload, cluster, side)

    def by_round(self, workload: str, cluster: str, side: str) -> dict[int, dict[str, float]]:
        """The metrics of one side, by round."""
        wanted = (workload, cluster, side)
        return {r.round: r.metrics for r in self._readings if (r.workload, r.cluster, r.side) == wanted}

    def add(self, workload: str, cluster: str, side: str, number: int, metrics: Mapping[str, float]) -> None:
        """Keep a reading, on disk at once."""
        reading = Reading(workload=workload, cluster=cluster, side=side, round=number, metrics=dict(metrics))
        self._readings.append(reading)
        if self._path:
            with self._path.open("a") as file:
                file.write(reading.model_dump_json() + "\n")

    def _load(self, path: Path, environment: Environment) -> None:
        # A run that was killed while it wrote may have left half a line at the end; that reading is made again.
        lines = path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        try:
            then = Environment.model_validate_json(whole[0])
            self._readings = [Reading.model_validate_json(line) for line in whole[1:]]
        except (IndexError, ValidationError, json.JSONDecodeError):
            raise ConfigError(f"readings file {path}: not readings of a benchmark; `--fresh` starts it anew") from None
        if not then.comparable(environment):
            raise ConfigError(
                f"readings file {path}: made under other conditions ({_difference(then, environment)}); "
                "`--fresh` measures everything again"
            )
        if len(whole) < len(lines):
            path.write_text("".join(whole))


def _difference(then: Environment, now: Environment) -> str:
    old, new = then.model_dump(exclude={"command"}), now.model_dump(exclude={"command"})
    return ", ".join(f"{key}: {old[key]!r} then, {new[key]!r} now" for key in old if old[key] != new[key])
