"""What probes have found: each side's best setting, kept on disk, so that no probe is made twice."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.cluster import ClusterSpec
from benchmarks.environment import Environment
from benchmarks.peers.trainer import Setting
from recparallel.errors import ConfigError


def conditions_of(spec: ClusterSpec) -> str:
    """What of a cluster decides the best setting: clusters that agree in it share their probes."""
    limits = [spec.limits(node) for node in range(spec.nodes)]
    cores = sorted({str(limit.cpu) for limit in limits})
    rates = sorted({str(limit.link_mbit) for limit in limits})
    return f"{spec.world_size} ranks, {'/'.join(cores)} core, {'/'.join(rates)} Mbit/s"


class Trial(BaseModel):
    """One probe.

    Attributes:
        workload, conditions, side: what was tried, and where.
        micro_batch, precision: the setting.
        seconds: of a step; ``None`` if it failed.
        total_seconds: with building.
        cpu_seconds: of a step, all ranks together, without the update where ``update_cpu_seconds`` is given.
        update_cpu_seconds: of the optimizer's update alone.
        failure: the first error line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str
    conditions: str
    side: str
    micro_batch: int
    precision: str
    seconds: float | None = None
    total_seconds: float = 0.0
    cpu_seconds: float = 0.0
    update_cpu_seconds: float | None = None
    failure: str | None = None

    @property
    def setting(self) -> Setting:
        """What was tried."""
        return Setting(self.micro_batch, self.precision)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    environment: Environment
    trials: list[Trial] = []


class Choices:
    """All trials, in ``NAME.probes.json`` beside the results.

    Args:
        path: the file; ``None`` keeps them in memory only.
        environment: trials of another machine or other versions are dropped: they are short, and made again.
        fresh: drop what the file holds.
    """

    def __init__(self, path: Path | None, environment: Environment, *, fresh: bool = False) -> None:
        self._path = path
        self._file = _File(environment=environment)
        if path and path.exists() and not fresh:
            try:
                stored = _File.model_validate_json(path.read_text())
            except ValidationError:
                raise ConfigError(f"probes file {path}: not probes of a benchmark; `--fresh` starts it anew") from None
            if stored.environment.comparable(environment):
                self._file = stored

    @classmethod
    def beside(cls, results: Path | None, environment: Environment, *, fresh: bool = False) -> "Choices":
        """Trials in ``NAME.probes.json`` beside ``NAME.json``."""
        return cls(results.with_suffix(".probes.json") if results else None, environment, fresh=fresh)

    @classmethod
    def for_quick_run(cls, results: Path, environment: Environment) -> "Choices":
        """What a full run has tried, if there was one here; what a quick run adds is not kept."""
        choices = cls.beside(results, environment)
        choices._path = None
        return choices

    def add(self, trial: Trial) -> None:
        """Keep a trial, on disk at once. It replaces one of the same setting."""
        same = (trial.workload, trial.conditions, trial.side, trial.setting)
        kept = [t for t in self._file.trials if (t.workload, t.conditions, t.side, t.setting) != same]
        self._file.trials = [*kept, trial]
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_name(self._path.name + ".new")
            fresh.write_text(self._file.model_dump_json(indent=1) + "\n")
            fresh.replace(self._path)

    def trials(self, workload: str, conditions: str, side: str) -> list[Trial]:
        """All trials of a side, failures among them."""
        wanted = (workload, conditions, side)
        return [t for t in self._file.trials if (t.workload, t.conditions, t.side) == wanted]

    def has(self, workload: str, conditions: str, side: str, setting: Setting) -> bool:
        """Whether this setting was tried."""
        return any(trial.setting == setting for trial in self.trials(workload, conditions, side))

    def best(self, workload: str, conditions: str, side: str, *, precision: str | None = None) -> Trial | None:
        """The fastest trial, of one precision if given; ``None`` if there is none that ran."""
        ran = [t for t in self.trials(workload, conditions, side) if t.seconds is not None]
        chosen = [t for t in ran if precision in (None, t.precision)]
        return min(chosen, key=lambda trial: trial.seconds or 0.0, default=None)

    def failure(self, workload: str, conditions: str, side: str) -> str | None:
        """Why a side runs at no setting; ``None`` if it runs at one, or was not tried."""
        trials = self.trials(workload, conditions, side)
        if not trials or any(trial.seconds is not None for trial in trials):
            return None
        return trials[0].failure
