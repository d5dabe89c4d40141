"""Run a function on real processes with real gloo, and get every rank's answer.

Workers are started once per world size and reused, since importing the stack costs seconds a process. A case is a
module-level function; it is called on every rank with the same keyword arguments. A case that does not answer in time
has every rank's stack dumped, and its workers are killed.
"""

import faulthandler
import gc
import importlib
import itertools
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

_TRIES = 3


class RankError(AssertionError):
    """A case failed on at least one rank; carries the first traceback by time."""


class Pool:
    """``world_size`` processes that form one torch world."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        port = self._port = _free_port()
        for stale in Path(tempfile.gettempdir()).glob(f"world-{port}-*"):
            stale.unlink()  # of workers that were killed: a world must not meet in it
        descriptor, self._dump = tempfile.mkstemp(prefix="stacks-")
        os.close(descriptor)
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, self.world_size, port, self._dump, list(sys.path)), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, case: Callable[..., Any], *, timeout: float = 120.0, **kwargs: Any) -> list[Any]:
        """Every rank's return value, in the order of ranks.

        Raises:
            RankError: a rank raised, died or did not answer within ``timeout`` seconds.
        """
        for _ in range(_TRIES):
            if self._has_met():
                break
            self.restart()
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # of a rank that has died, which shows when it does not answer
                pipe.send((case.__module__, case.__qualname__, kwargs))
        answers: dict[int, tuple[str, Any, float]] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < self.world_size:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            failed = any(kind == "error" for kind, _, _ in answers.values())
            if not ready:
                self._give_up(answers, timeout)
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    answers[rank] = pipe.recv()
                except (EOFError, ConnectionResetError):
                    answers[rank] = ("error", f"rank {rank} died", time.time())
            if not failed and any(kind == "error" for kind, _, _ in answers.values()):
                deadline = min(deadline, time.monotonic() + 10)  # the others wait for it in a collective
        errors = sorted((at, rank, text) for rank, (kind, text, at) in answers.items() if kind == "error")
        if errors:
            self.restart()
            raise RankError(f"first error, on rank {errors[0][1]}:\n{errors[0][2]}")
        return [answers[rank][1] for rank in range(self.world_size)]

    def _has_met(self) -> bool:
        """Whether the workers have made the next case's world. On a machine that is busy with something else, gloo can fail to
        connect them, which no case is about: then there are new workers."""
        deadline = time.monotonic() + 60
        for pipe in self._pipes:
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                return False
            try:
                pipe.recv()
            except (EOFError, ConnectionResetError):
                return False
        return True

    def _give_up(self, answers: dict[int, tuple[str, Any, float]], timeout: float) -> None:
        errors = sorted((at, rank, text) for rank, (kind, text, at) in answers.items() if kind == "error")
        if errors:
            self.restart()
            raise RankError(f"first error, on rank {errors[0][1]}; others hung:\n{errors[0][2]}")
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)
        time.sleep(1.0)
        stacks = Path(self._dump).read_text()
        self.restart()
        raise RankError(
            f"no answer within {timeout} s from ranks {sorted({*range(self.world_size)} - {*answers})}\n{stacks}"
        )

    def restart(self) -> None:
        """Kill the workers and start fresh ones."""
        self.close()
        self._start()

    def close(self) -> None:
        for rank, process in enumerate(self._processes):
            process.kill()
            process.join()
            # DeepSpeed leaves 66 MiB of shared memory behind for every rank.
            Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{self._port}_{rank}").unlink(
                missing_ok=True
            )
        os.unlink(self._dump)


def _serve(pipe: Connection, rank: int, world_size: int, port: int, dump: str, path: list[str]) -> None:
    sys.path[:] = path
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    stacks = open(dump, "a")  # noqa: SIM115 (lives as long as the worker)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    import torch

    torch.set_num_threads(1)
    worlds = Path(tempfile.gettempdir(), f"world-{port}")
    known_modules = 0
    for number in itertools.count():
        _join_world(f"{worlds}-{number}", rank, world_size)
        pipe.send(None)
        try:
            module, name, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            case = importlib.import_module(module)
            for part in name.split("."):
                case = getattr(case, part)
            pipe.send(("done", case(**kwargs), time.time()))
        except BaseException:
            pipe.send(("error", traceback.format_exc(), time.time()))
        _leave_world()
        if len(sys.modules) > known_modules:
            known_modules = len(sys.modules)
            gc.freeze()  # of what was imported nothing goes: looking through it after every case would take a second
        Path(f"{worlds}-{number}").unlink(missing_ok=True)


def _join_world(meeting: str, rank: int, world_size: int) -> None:
    """Every case gets a world of its own: engines make process groups, each with threads that nobody would end."""
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False, init_method=f"file://{meeting}", rank=rank, world_size=world_size)


def _leave_world() -> None:
    """End all groups, and what DeepSpeed remembers of them in its modules."""
    import deepspeed.comm.comm
    import torch.distributed as dist
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils import groups

    for engine in [found for found in gc.get_objects() if isinstance(found, DeepSpeedEngine)]:
        # Hooks of its last loss, and under ZeRO of its weights, hold the engine in autograd's own memory, where Python sees no
        # cycle: each would keep its groups, whose threads look for messages a hundred times a second.
        if isinstance(engine.__dict__.get("optimizer"), DeepSpeedZeroOptimizer):
            engine.optimizer.destroy()
        for name in ("loss", "total_loss", "fwd_outputs", "pipe_buffers", "optimizer"):
            engine.__dict__.pop(name, None)
    gc.collect()  # engines hold groups in cycles
    if dist.is_initialized():  # a case that failed may have left it
        dist.destroy_process_group()
    deepspeed.comm.comm.cdb = None
    importlib.reload(groups)
    gc.collect()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
