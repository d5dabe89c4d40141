"""Divide one launch into replicas, each a torch and DeepSpeed world of its own, before either makes any group.

The launcher tells every process its rank, the number of processes and an address. A replica is as many ranks in a row as it needs;
its first rank finds a free port, and tells it to the others through a store at the launcher's address. From then on the environment
of every process describes its replica, and the store joins the replicas.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import GroupName, PrefixStore, Store

from recparallel.errors import ConfigError, ReplicaError
from recparallel.plan import Partition

_CUT = "cut"


@dataclass(frozen=True)
class ReplicaWorld:
    """Where a process stands among replicas.

    Attributes:
        number: of its replica, from 0.
        count: of replicas.
        inner: its rank in its replica.
        store: of the launch.
        timeout: of whatever replicas do together.
    """

    number: int
    count: int
    inner: int
    store: Store
    timeout: timedelta

    def tell_cut(self, partition: Partition | None) -> None:
        """The first replica has measured and cut; the others, which can exchange the same layers alone, take its cut.

        Args:
            partition: None for a method of DeepSpeed's own, which cuts alike by itself.
        """
        if self.number == 0 and self.inner == 0:
            self.store.set(_CUT, "" if partition is None else partition.model_dump_json())

    def cut(self) -> Partition | None:
        """That the first replica tells, waited for; None for the first, and where there is none to tell.

        Raises:
            ReplicaError: it does not tell in time.
        """
        if self.number == 0:
            return None
        try:
            told = self.store.get(_CUT).decode()
        except dist.DistError as error:
            raise ReplicaError(
                f"replica {self.number}: the first replica has not cut its model within {self.timeout.total_seconds():.0f} s "
                f"(recparallel.data_parallel.timeout_s): {error}"
            ) from error
        return Partition.model_validate_json(told) if told else None


def divide_launch(count: int, *, timeout_s: float) -> ReplicaWorld:
    """Make the environment that of this process's replica.

    Args:
        count: of replicas.
        timeout_s: of whatever they do together.

    Raises:
        ConfigError: there is a process group already, or no launcher has told ranks.
    """
    if dist.is_initialized():
        raise ConfigError(
            "recparallel.data_parallel: replicas are worlds of their own, but torch.distributed is initialized already; call "
            "recparallel.initialize first"
        )
    missing = [key for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]
    if missing:
        raise ConfigError(
            f"recparallel.data_parallel needs a launcher that sets {', '.join(missing)}; start with `deepspeed`"
        )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout, size = timedelta(seconds=timeout_s), world_size // count
    number, inner = divmod(rank, size)
    # Nobody waits for all here: who comes too late is found out by the first exchange.
    hosted = (
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", "") == "True"
    )  # torchrun's agent has a store at this address
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, world_size, is_master=rank == 0 and not hosted, timeout=timeout, wait_for_workers=False
    )
    key = f"replica {number}"
    if inner == 0:
        store.set(key, f"{_own_address(address, port)} {_free_port()}")
    own_address, own_port = store.get(key).decode().split()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size)
    first_here = rank - local_rank
    here = min(first_here + local_size, (number + 1) * size) - max(first_here, number * size)
    os.environ.update(
        RANK=str(inner), WORLD_SIZE=str(size), MASTER_ADDR=own_address, MASTER_PORT=own_port, LOCAL_SIZE=str(here)
    )
    if "LOCAL_WORLD_SIZE" in os.environ:
        os.environ["LOCAL_WORLD_SIZE"] = str(here)
    return ReplicaWorld(number, count, inner, store, timeout)


def outer_group(world: ReplicaWorld, name: str) -> dist.ProcessGroup:
    """The ranks that hold the same layers in all replicas, joined over gloo: their number in it is that of their replica.

    Raises:
        RuntimeError: a replica does not come in time.
    """
    group, _ = distributed_c10d._new_process_group_helper(
        world.count,
        world.number,
        [],
        "gloo",
        PrefixStore(f"{name}/{world.inner}", world.store),
        group_name=GroupName(f"{name}/{world.inner}"),
        timeout=world.timeout,
    )
    # Torch numbers the ranks of a group by the world; others than this one are in other worlds, and have no number there.
    ranks = {dist.get_rank() if number == world.number else -1 - number: number for number in range(world.count)}
    distributed_c10d._world.pg_group_ranks[group] = ranks
    return group


def _own_address(address: str, port: int) -> str:
    """Of this machine, as the one at ``address`` sees it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))  # sends nothing
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
