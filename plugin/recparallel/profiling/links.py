"""Measure the links between ranks: latency from small messages, bandwidth from large ones.

All pairs of up to :data:`MOST_RANKS` ranks, in rounds of pairs that do not share a rank (a round-robin tournament, the
circle method). Of more ranks each measures its neighbour, and the slowest of these stands for all other pairs.
"""

import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from recparallel.plan import LinkCost

MOST_RANKS = 16

_SMALL_BYTES, _SMALL_REPEATS = 8, 5
_FIRST_BYTES, _MOST_BYTES = 2**18, 2**24
_LARGE_SECONDS = 0.15
_ALIKE, _ALIKE_LATENCY = 0.2, 0.75


def measure_links(device: torch.device | str = "cpu") -> tuple[LinkCost, ...]:
    """Collective over the default group: every rank calls, every rank gets all links.

    Rates within 20 % of each other count as equal, so that noise does not make links that are alike look different.

    Args:
        device: where tensors live that the backend can send.
    """
    world = dist.get_world_size()
    if world < 2:
        return ()
    own: dict[tuple[int, int], tuple[float, float]] = {}
    for pairs in _rounds(world):
        for a, b in pairs:
            if dist.get_rank() in (a, b):
                own[a, b] = _measure(a, b, device)
        dist.barrier()
    gathered: list[dict[tuple[int, int], tuple[float, float]]] = [{} for _ in range(world)]
    dist.all_gather_object(gathered, own)
    both: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for measured in gathered:
        for pair, value in measured.items():
            both.setdefault(pair, []).append(value)
    rates = {pair: sum(rate for rate, _ in seen) / len(seen) for pair, seen in both.items()}
    latencies = {pair: sum(latency for _, latency in seen) / len(seen) for pair, seen in both.items()}
    return as_links(rates, latencies, complete=world <= MOST_RANKS)


def as_links(
    rates: dict[tuple[int, int], float], latencies: dict[tuple[int, int], float], *, complete: bool
) -> tuple[LinkCost, ...]:
    """Links from what was measured: one for all pairs if they are alike, else one a pair.

    Args:
        rates: bytes per second, by pair.
        latencies: seconds, by pair.
        complete: whether every pair was measured; if not, the slowest stands for the others.
    """
    alike = snapped(rates, _ALIKE)
    delays = snapped(latencies, _ALIKE_LATENCY)
    values = {(alike[pair], delays[pair]) for pair in rates}
    slowest = LinkCost(bytes_per_second=min(alike.values()), latency_seconds=max(delays.values()))
    if len(values) == 1:
        return (slowest,)
    links = [
        LinkCost(bytes_per_second=alike[pair], latency_seconds=delays[pair], between=pair) for pair in sorted(rates)
    ]
    return (*links,) if complete else (*links, slowest)


def snapped(values: dict[tuple[int, int], float], share: float) -> dict[tuple[int, int], float]:
    """Values within ``share`` of the largest of their kind, replaced by the mean of the kind."""
    kinds: list[list[tuple[int, int]]] = []
    for key in sorted(values, key=lambda key: -values[key]):
        if kinds and values[key] >= (1 - share) * values[kinds[-1][0]]:
            kinds[-1].append(key)
        else:
            kinds.append([key])
    return {key: sum(values[k] for k in kind) / len(kind) for kind in kinds for key in kind}


def _rounds(world: int) -> Iterator[list[tuple[int, int]]]:
    """Pairs of ranks, no rank twice in a round."""
    if world > MOST_RANKS:
        for parity in (0, 1):
            yield [(rank, rank + 1) for rank in range(parity, world - 1, 2)]
        return
    places: list[int | None] = [*range(world), *([None] if world % 2 else [])]
    for _ in range(len(places) - 1):
        half = len(places) // 2
        pairs = zip(places[:half], reversed(places[half:]))
        yield [(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None]
        places = [places[0], places[-1], *places[1:-1]]


def _measure(a: int, b: int, device: torch.device | str) -> tuple[float, float]:
    """Bytes per second and seconds of latency between two ranks; both call."""
    first, other = dist.get_rank() == a, b if dist.get_rank() == a else a

    def there_and_back(num_bytes: int, repeats: int) -> float:
        tensor = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        start = time.perf_counter()
        for _ in range(repeats):
            if first:
                dist.send(tensor, other)
                dist.recv(tensor, other)
            else:
                dist.recv(tensor, other)
                dist.send(tensor, other)
        if tensor.device.type != "cpu":
            torch.accelerator.synchronize(tensor.device)
        return (time.perf_counter() - start) / (2 * repeats)

    there_and_back(_SMALL_BYTES, 1)  # connects
    latency = there_and_back(_SMALL_BYTES, _SMALL_REPEATS)
    once = there_and_back(_FIRST_BYTES, 1)
    # Both ends must take the same size; the first one's clock decides.
    size = torch.tensor([int(_FIRST_BYTES * max(1.0, _LARGE_SECONDS / max(once, 1e-6)))], device=device)
    if first:
        dist.send(size, other)
    else:
        dist.recv(size, other)
    num_bytes = min(int(size.item()), _MOST_BYTES)
    seconds = there_and_back(num_bytes, 1)
    return num_bytes / max(seconds - latency, 1e-9), latency
