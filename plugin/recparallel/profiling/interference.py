"""What a transfer takes from the computation beside it: a processor copies and checks every byte that it sends or receives.

Over TCP the system does most of it in the name of whatever thread runs, and what it touches pushes the thread's data out of the
caches. What the transfer's own threads take is left out: they run mostly while the computation waits, or on another core.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from recparallel.profiling.busywork import busywork

_MOST_BYTES, _LEAST_BYTES, _CROSSING_SECONDS = 2**18, 2**15, 0.05
_REPEATS = 6
_WORK_SECONDS = 0.06


@dataclass(frozen=True)
class Cost:
    """Seconds of some work: on the clock, and of the processor in the thread that does it."""

    wall: float
    processor: float


def measure_interference(device: torch.device | str, dtype: torch.dtype, slowest_rate: float) -> float:
    """Collective over the default group: seconds of this rank's computation that each byte costs which it sends or receives
    meanwhile. 0 on other devices than CPUs, for a rank alone, and where links are so slow that too little crosses them to be
    felt.

    1. Time some products and sums, in turn alone and with a tensor on its way to the next rank and one from the rank before.
    2. The median difference in processor time counts, at the pace at which this rank gets processor time.

    Args:
        device, dtype: of the computation.
        slowest_rate: bytes per second of the slowest link: the tensors are small enough to cross it meanwhile.
    """
    num_bytes = min(_MOST_BYTES, int(_CROSSING_SECONDS * slowest_rate))
    if torch.device(device).type != "cpu" or dist.get_world_size() < 2 or num_bytes < _LEAST_BYTES:
        return 0.0
    work = _work(dtype)
    pairs = [(_time(work, _alone), _time(work, partial(_around_the_ring, num_bytes))) for _ in range(_REPEATS)]
    return price_of_a_byte(pairs, num_bytes)


def price_of_a_byte(pairs: Sequence[tuple[Cost, Cost]], num_bytes: int) -> float:
    """Seconds a byte, from the same work alone and beside ``num_bytes`` in each direction, time after time."""
    pace = statistics.median(alone.wall / max(alone.processor, 1e-9) for alone, _ in pairs)
    more = statistics.median(beside.processor - alone.processor for alone, beside in pairs)
    return max(more, 0.0) * pace / (2 * num_bytes)


def _work(dtype: torch.dtype) -> Callable[[], None]:
    """So much of it that it takes :data:`_WORK_SECONDS` of processor time."""
    compute = busywork(dtype)
    compute()
    start = time.thread_time()
    for _ in range(5):
        compute()
    times = max(1, round(5 * _WORK_SECONDS / max(time.thread_time() - start, 1e-6)))

    def work() -> None:
        for _ in range(times):
            compute()

    return work


def _around_the_ring(num_bytes: int) -> Callable[[], list[dist.Work]]:
    """Post a receive from the rank before, as a training does ahead; gives what sends to the next one."""
    rank, world = dist.get_rank(), dist.get_world_size()
    outgoing, incoming = (torch.zeros(num_bytes, dtype=torch.uint8) for _ in range(2))
    coming = dist.irecv(incoming, (rank - 1) % world)

    def send() -> list[dist.Work]:
        return [work for work in (dist.isend(outgoing, (rank + 1) % world), coming) if work is not None]

    return send


def _alone() -> Callable[[], list[dist.Work]]:
    return list


def _time(work: Callable[[], None], prepare: Callable[[], Callable[[], list[dist.Work]]]) -> Cost:
    """Of starting transfers, if any, and of the computation beside them; they are over when this returns."""
    start_transfers = prepare()
    dist.barrier()
    wall, processor = time.perf_counter(), time.thread_time()
    transfers = start_transfers()
    work()
    wall, processor = time.perf_counter() - wall, time.thread_time() - processor
    for transfer in transfers:
        transfer.wait()
    return Cost(wall, processor)
