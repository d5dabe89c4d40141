"""The cluster that benchmarks and tests hold: made once, used for many runs, removed in every case."""

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from benchmarks.cluster.cleanup import kill_processes, remove_leftovers
from benchmarks.cluster.description import Change, ClusterSpec
from benchmarks.cluster.machine import BackgroundMeter
from benchmarks.cluster.names import new_name
from benchmarks.cluster.network import Counters
from benchmarks.cluster.outcome import NodeResult, RankResult, RunResult
from benchmarks.cluster.placement import place_on_cores
from benchmarks.cluster.process import RankProcess
from benchmarks.cluster.rank_environment import RankFiles, RankPlace, rank_environment
from benchmarks.cluster.sites import EmulatedSite, LocalSite, Site
from benchmarks.cluster.supervision import Supervisor
from recparallel.errors import ConfigError

Command = Sequence[str] | Callable[[RankPlace], Sequence[str]]

_log = logging.getLogger(__name__)


class Cluster:
    """An emulated cluster, as a context manager.

    What it makes is removed after success, an exception, Ctrl-C and SIGTERM by itself; after SIGKILL by a small process
    that watches it; and whatever both left, by the next start. Runs of others that are alive are never touched.

    Args:
        spec: the description.
        local: plain local processes instead: no rights needed, no limits, and results marked ``emulated: false``.

    Raises:
        RightsError: on construction, where rights or tools are missing and ``local`` is false.

    Example:
        >>> with Cluster(get_cluster("flat")) as cluster:  # doctest: +SKIP
        ...     first = cluster.run([sys.executable, "train.py"], timeout=300).check()
        ...     again = cluster.run([sys.executable, "train.py"], timeout=300).check()
    """

    def __init__(self, spec: ClusterSpec, *, local: bool = False) -> None:
        self.spec = spec
        self.name = new_name()
        self.site: Site = LocalSite(self.name) if local else EmulatedSite(spec, self.name)
        self._former_handler: Any = None
        self._scratch: list[Path] = []

    @property
    def emulated(self) -> bool:
        """Whether the limits hold."""
        return self.site.emulated

    def __enter__(self) -> "Cluster":
        for name in remove_leftovers():
            _log.warning("removed what a dead run left behind: %s", name)
        self._warn_if_too_small()
        self._take_sigterm()
        try:
            self.site.open()
        except BaseException:
            self.site.close()
            self._give_sigterm_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.site.close()
        finally:
            self._give_sigterm_back()
            for folder in self._scratch:
                shutil.rmtree(folder, ignore_errors=True)

    def run(
        self,
        command: Command,
        *,
        environment: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
        logs: str | Path | None = None,
        timeout: float | None = None,
        stop_on_failure: bool = True,
        show: Callable[[int, str], None] | None = None,
        changes: Sequence[Change] | None = None,
    ) -> RunResult:
        """Run a command on every rank and wait for all of them.

        Every rank finds what torch and DeepSpeed expect in its environment (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
        ``MASTER_ADDR``, ``MASTER_PORT``, ``GLOO_SOCKET_IFNAME``, ``OMP_NUM_THREADS`` and so on). There is no way out of
        the cluster's network: what a rank needs must be on the disk. Limits start as described, whatever an earlier run
        changed.

        Args:
            command: the program and its arguments, the same for all ranks, or a function that makes it for a rank.
            environment: more variables; they win.
            directory: where the ranks run; the current one if left out.
            logs: the folder for ``rank<n>.log``; logs of an earlier run in it are replaced. If left out, a temporary one,
                which goes with the cluster unless the run failed.
            timeout: seconds after which every rank is asked for its Python stacks and stopped.
            stop_on_failure: stop the others within about three seconds when a rank fails.
            show: called with a rank and each line of its output, as it comes; :func:`benchmarks.output.show_line`
                prints them.
            changes: what happens in mid-run, instead of the description's.

        Returns:
            What happened; ``.check()`` raises if a rank failed.
        """
        spec = self.spec if changes is None else self.spec.with_changes(*changes)
        folder = self._scratch_folder() if logs is None else Path(logs)
        folder.mkdir(parents=True, exist_ok=True)
        self.site.reset()
        before = self._counters(), self._cpu()
        meter = BackgroundMeter()
        started = time.monotonic()
        processes: list[RankProcess] = []
        supervisor = self._supervisor(spec, processes, folder, timeout, stop_on_failure, show)
        try:
            self._start(spec, processes, command, environment or {}, directory, folder)
            supervisor.wait()
        finally:
            # Also what ranks started and left, and everything if an exception or Ctrl-C came in between.
            supervisor.stop()
            kill_processes(self.name)
        seconds = time.monotonic() - started
        nodes = [
            now.since(then) if now and then else None for now, then in zip(self._counters(), before[0], strict=True)
        ]
        cpu = [
            process.used_seconds if now is None or then is None else now - then
            for process, now, then in zip(processes, self._cpu(), before[1], strict=True)
        ]
        error = supervisor.error()
        if logs is None and error is not None:
            self._scratch.remove(folder)  # kept: the message names it
        return RunResult(
            cluster=spec.name,
            emulated=self.emulated,
            ranks=tuple(self._rank_result(process, cpu[process.rank], nodes, started) for process in processes),
            nodes=tuple(_node_result(node, counters) for node, counters in enumerate(nodes)),
            wall_seconds=seconds,
            changes=tuple(supervisor.applied),
            background_cores=meter.read(own_seconds=sum(cpu)),
            logs=folder,
            error=error,
        )

    def places(self, port: int) -> list[RankPlace]:
        """Where each rank runs, if rank 0 listens at ``port``."""
        spec = self.spec
        return [
            RankPlace(
                rank=rank,
                local_rank=rank % spec.ranks_per_node,
                node=spec.node_of(rank),
                world_size=spec.world_size,
                address=self.site.address(spec.node_of(rank)),
                master_address=self.site.address(0),
                master_port=port,
                interface=self.site.interface,
            )
            for rank in range(spec.world_size)
        ]

    def _scratch_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._scratch.append(folder)
        return folder

    def _start(
        self,
        spec: ClusterSpec,
        processes: list[RankProcess],
        command: Command,
        extra: Mapping[str, str],
        directory: str | Path | None,
        folder: Path,
    ) -> None:
        progress = folder / "progress"
        progress.unlink(missing_ok=True)
        cores = place_on_cores(spec, sorted(os.sched_getaffinity(0)))
        for place in self.places(self.site.new_port()):
            files = RankFiles(progress, folder / f"rank{place.rank}.json", self.site.usage_file(place.rank))
            files.report.unlink(missing_ok=True)
            own = list(command(place) if callable(command) else command)
            if not own or not all(isinstance(word, str) for word in own):
                raise ConfigError(
                    f"command of rank {place.rank}: given {own!r}; needs a program and arguments, all strings"
                )
            processes.append(
                RankProcess.start(
                    place.rank,
                    self.site.wrap(place.rank, own, core=cores.get(place.rank)),
                    environment=rank_environment(
                        spec, place, _absolute(files), owner=self.name, base=os.environ, extra=extra
                    ),
                    directory=None if directory is None else Path(directory),
                    log=folder / f"rank{place.rank}.log",
                    report_file=files.report,
                )
            )

    def _supervisor(
        self,
        spec: ClusterSpec,
        processes: list[RankProcess],
        folder: Path,
        timeout: float | None,
        stop_on_failure: bool,
        show: Callable[[int, str], None] | None,
    ) -> Supervisor:
        return Supervisor(
            processes=processes,
            progress=folder / "progress",
            changes=spec.changes,
            apply=self._apply,
            timeout=timeout,
            stop_on_failure=stop_on_failure,
            show=show,
        )

    def _apply(self, change: Change) -> bool:
        assert change.node is not None
        done = True
        if "cpu" in change.model_fields_set:
            done &= self.site.set_cpu(change.node, change.cpu)
        if "link_mbit" in change.model_fields_set:
            done &= self.site.set_link(change.node, change.link_mbit)
        if not done:
            _log.warning("not made, plain local processes have no limits: %s", change)
        return done

    def _counters(self) -> list[Counters | None]:
        return [self.site.counters(node) for node in range(self.spec.nodes)]

    def _cpu(self) -> list[float | None]:
        return [self.site.cpu_seconds(rank) for rank in range(self.spec.world_size)]

    def _rank_result(
        self, process: RankProcess, cpu_seconds: float, nodes: Sequence[Counters | None], started: float
    ) -> RankResult:
        node = self.spec.node_of(process.rank)
        counters, sharing = nodes[node], self.spec.ranks_per_node
        assert process.exit_code is not None
        assert process.ended is not None
        return RankResult(
            rank=process.rank,
            node=node,
            exit_code=process.exit_code,
            stopped=process.stopped,
            wall_seconds=process.ended - started,
            cpu_seconds=cpu_seconds,
            cpu_limit=self.spec.limits(node).cpu if self.emulated else None,
            sent_bytes=counters.sent / sharing if counters else None,
            received_bytes=counters.received / sharing if counters else None,
            peak_memory_bytes=process.peak_memory_bytes,
            report=process.report(),
            log=process.log,
        )

    def _warn_if_too_small(self) -> None:
        total, cores = self.spec.total_cores, len(os.sched_getaffinity(0))
        if self.emulated and total is not None and total > cores + 1e-9:
            _log.warning(
                "cluster %s gives its ranks %g cores together, this machine has %d: they will not get their shares",
                self.spec.name,
                total,
                cores,
            )

    def _take_sigterm(self) -> None:
        """Let SIGTERM end the run like Ctrl-C does, through every `finally`."""
        if threading.current_thread() is threading.main_thread():
            self._former_handler = signal.signal(signal.SIGTERM, _exit_on_sigterm)

    def _give_sigterm_back(self) -> None:
        if self._former_handler is not None:
            signal.signal(signal.SIGTERM, self._former_handler)
            self._former_handler = None


def _exit_on_sigterm(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _absolute(files: RankFiles) -> RankFiles:
    return RankFiles(files.progress.absolute(), files.report.absolute(), files.usage)


def _node_result(node: int, counters: Counters | None) -> NodeResult:
    if counters is None:
        return NodeResult(node, None, None, None)
    return NodeResult(node, counters.sent, counters.received, counters.loopback)
