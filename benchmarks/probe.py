"""What each rank of the self-check runs: stream over the links, spin, all-reduce. Hands back its readings."""

import json
import os
import socket
import sys
import threading
import time
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import rank as bench

_CHUNK = bytes(256 * 1024)
# The limiter's bucket and the growth of the window make the beginning of a stream faster or slower than its rate.
_SETTLE_SECONDS = 0.7


def main(address: str, settings: dict[str, Any]) -> None:
    """Run every probe.

    Args:
        address: this node's own.
        settings: ``rounds``, ``stream_seconds``, ``spin_seconds``, ``all_reduce_bytes``, ``all_reduces``.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    report: dict[str, list[Any]] = {"spin_shares": [], "received_mbit": []}
    listener = socket.create_server((address, 0))
    peers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(peers, listener.getsockname()[:2])
    for _ in range(settings["rounds"]):
        dist.barrier()
        report["received_mbit"].append(_stream(listener, peers, settings["stream_seconds"]))
        dist.barrier()
        report["spin_shares"].append(_spin(settings["spin_seconds"]))
    report["all_reduce_seconds"] = _all_reduce(settings["all_reduce_bytes"], settings["all_reduces"])
    bench.write_report(report)
    dist.barrier()
    dist.destroy_process_group()


def _stream(listener: socket.socket, peers: list[tuple[str, int]], seconds: float) -> float | None:
    """The first rank of each node sends to the next node and receives from the one before, all at once.

    Returns:
        Mbit/s of data received, headers not counted; ``None`` on the other ranks.
    """
    if int(os.environ["LOCAL_RANK"]) or os.environ["CROSS_SIZE"] == "1":
        return None
    step = int(os.environ["LOCAL_WORLD_SIZE"])
    target = peers[(dist.get_rank() + step) % len(peers)]
    sender = threading.Thread(target=_send, args=(target, seconds))
    sender.start()
    with listener.accept()[0] as stream:
        rate = _receive(stream)
    sender.join()
    return rate


def _send(target: tuple[str, int], seconds: float) -> None:
    end = time.monotonic() + seconds
    with socket.create_connection(target) as stream:
        while time.monotonic() < end:
            stream.sendall(_CHUNK)


def _receive(stream: socket.socket) -> float:
    buffer = bytearray(1 << 20)
    opened = time.monotonic()
    begun = last = 0.0
    received = 0
    while count := stream.recv_into(buffer):
        last = time.monotonic()
        if begun:
            received += count
        elif last - opened > _SETTLE_SECONDS:
            begun = last
    return received * 8 / 1e6 / (last - begun)


def _spin(seconds: float) -> float:
    """Keep the core busy.

    Returns:
        CPU seconds used over seconds passed.
    """
    start = bench.read()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))
    used = bench.read() - start
    return used.cpu_seconds / used.seconds


def _all_reduce(num_bytes: int, repeats: int) -> list[float]:
    """Seconds of each all-reduce of ``num_bytes`` of fp32; the first one, which connects, is not among them."""
    tensor = torch.zeros(num_bytes // 4)
    seconds = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.monotonic()
        dist.all_reduce(tensor)
        seconds.append(time.monotonic() - start)
    return seconds[1:]


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
