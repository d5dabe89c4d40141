"""``python -m benchmarks codecs``: what every codec reads and writes a second, beside a plain copy, on one core and on a GPU.

A gradient of 10 million fp32 numbers, drawn from a normal distribution. Rates are the gradient's bytes over the seconds of one
call: so a copy, which reads and writes all of it, is the most that can be asked for, and a pass that only reads is a little faster.
"""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.environment import capture_environment
from benchmarks.options import Options
from benchmarks.output import console
from benchmarks.results import Results, Row, row_of
from benchmarks.study_tables import markdown_table, write_between_markers
from recparallel import registry
from recparallel.compression.base import Codec

DOCUMENT = Path("docs") / "compression.md"
COPY, READ = "copy", "read once"
COLUMNS = (
    "device",
    "codec",
    "bytes of fp32",
    "encode GB/s",
    "over a copy's time",
    "add decoded GB/s",
    "over a copy's time",
)
_SIZE, _ROUNDS = 10_000_000, 7


def run(options: Options) -> int:
    """Measure all codecs on the CPU, and on a GPU where there is one; sides take turns.

    Returns:
        0, whatever came out.
    """
    results = Results(benchmark="codecs", environment=capture_environment(options.command, emulated=False))
    size, rounds = (_SIZE // 10, 3) if options.quick else (_SIZE, options.rounds or _ROUNDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            results.rows += _measure(torch.device(device), size, rounds)
    finally:
        torch.set_num_threads(threads)
    table = Table(*COLUMNS)
    for line in lines_of(results):
        table.add_row(*line)
    console.print(table)
    if options.json:
        results.save(options.json)
        if (
            not options.quick
            and DOCUMENT.is_file()
            and options.json.resolve().parent == (DOCUMENT.parent / "results").resolve()
        ):
            write_between_markers(DOCUMENT, markdown_table(COLUMNS, lines_of(results)), name="codecs")
    return 0


def codecs() -> list[Codec]:
    """Those of the registry, each with its default options."""
    made: list[Any] = [registry.codecs.load(name) for name in registry.codecs]
    return [codec for kind in made if inspect.isclass(kind) and isinstance(codec := kind(), Codec)]


def _measure(device: torch.device, size: int, rounds: int) -> list[Row]:
    flat_N = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    into_N = torch.zeros_like(flat_N)
    calls: dict[tuple[str, str], Callable[[], object]] = {
        (COPY, "encode"): lambda: into_N.copy_(flat_N),
        (READ, "encode"): lambda: flat_N.sum(),
    }
    for codec in codecs():
        payload = codec.encode(flat_N)
        calls[codec.name, "encode"] = lambda codec=codec: codec.encode(flat_N)  # type: ignore[misc]
        calls[codec.name, "decode"] = lambda codec=codec, payload=payload: codec.add_decoded(payload, into_N)  # type: ignore[misc]
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for number in track(range(rounds + 1), description=f"codecs on {device}", console=console, transient=True):
        for key, call in calls.items():
            took = _timed(call, flat_N)
            if number:  # the first warms up
                seconds[key].append(took)
    num_bytes = size * flat_N.element_size()
    rows = [
        row_of(device.type, f"{size} fp32", name, f"{what}_rate", "GB/s", [num_bytes / took / 1e9 for took in values])
        for (name, what), values in seconds.items()
    ]
    shares = [(codec.name, codec.payload_bytes(size, torch.float32) / num_bytes) for codec in codecs()]
    return rows + [row_of(device.type, f"{size} fp32", name, "payload_share", "", [share]) for name, share in shares]


def _timed(call: Callable[[], object], tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def lines_of(results: Results) -> list[tuple[str, ...]]:
    """A line for each codec on each device, the fastest encoder first."""
    found = {(row.workload, row.side, row.metric): row for row in results.rows}
    lines: list[tuple[str, ...]] = []
    for device in dict.fromkeys(row.workload for row in results.rows):
        copy = found[device, COPY, "encode_rate"].median
        encoders = [row for row in results.rows if row.workload == device and row.metric == "encode_rate"]
        for row in sorted(encoders, key=lambda row: -row.median):
            decode, share = found.get((device, row.side, "decode_rate")), found.get((device, row.side, "payload_share"))
            lines.append(
                (
                    device,
                    row.side,
                    "" if share is None else f"{share.median:.1%}",
                    _spread(row),
                    f"{copy / row.median:.1f}",
                    "" if decode is None else _spread(decode),
                    "" if decode is None else f"{copy / decode.median:.1f}",
                )
            )
    return lines


def _spread(row: Row) -> str:
    return f"{row.median:.1f} ({row.min:.1f}–{row.max:.1f})"
