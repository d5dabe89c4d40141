"""``python -m benchmarks.ragged_rank ORDER``: one rank that trains on ragged histories, put into rows in several ways.

Each way has an engine of its own; they take turns, a few steps at a time.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import recparallel
from benchmarks import rank as bench
from benchmarks.workloads import DATA, get_workload
from recparallel.data.batching import sequences_of
from recparallel.data.preparation import prepare
from recparallel.data.splits.leave_one_out import leave_one_out
from recparallel.data.windows import Windows
from recparallel.engines.loading import endless

_TIMEOUT = timedelta(seconds=240)


@dataclass(frozen=True)
class Way:
    """One way to put histories into rows.

    Attributes:
        lengths: of the config.
        rows: of a micro-batch.
        count: micro-batches of a step.
    """

    lengths: str
    rows: int
    count: int

    def __str__(self) -> str:
        return f"{self.lengths}, {self.count} × {self.rows} rows"


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        workload: with real histories.
        ways: that take turns.
        rounds: turns of each; each round begins with the next of them.
        steps: of a turn.
        threads: of a rank.
    """

    workload: str
    ways: tuple[Way, ...]
    rounds: int
    steps: int
    threads: int

    def to_json(self) -> str:
        """For the command line of a rank."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Order":
        order = json.loads(text)
        return cls(**{**order, "ways": tuple(Way(**way) for way in order["ways"])})


def main(order: Order) -> None:
    """Report ``turns``: for each way, of each turn the seconds, histories, targets and positions."""
    torch.set_num_threads(order.threads)
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    workload = get_workload(order.workload)
    windows = windows_of(order.workload)
    made = [_engine(workload, way, windows) for way in order.ways]
    for engine, batches in made:
        _turn(engine, batches, steps=1)
    turns: list[list[list[float]]] = [[] for _ in made]
    for number in range(order.rounds):
        for place in range(len(made)):
            which = (place + number) % len(made)
            turns[which].append(_turn(*made[which], steps=order.steps))
    bench.write_report({"turns": turns})
    dist.barrier()
    for engine, _ in made:
        engine.recparallel.remove()
    dist.destroy_process_group()


def windows_of(name: str) -> Windows:
    """Windows of the workload's histories."""
    workload = get_workload(name)
    file = workload.data_file()
    assert file is not None, f"{name} has no histories; {DATA} is for those that have"
    return leave_one_out(prepare("sequences", file.parent).histories()).train_windows(workload.length)


def _engine(workload: Any, way: Way, windows: Windows) -> tuple[Any, Iterator[Any]]:
    world = int(os.environ["WORLD_SIZE"])
    config = {
        "train_micro_batch_size_per_gpu": way.rows,
        "gradient_accumulation_steps": way.count,
        "steps_per_print": 10**9,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}},
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "recparallel": {"stages": world, "lengths": way.lengths, "attention": "fastest"},
    }
    engine, _, loader, _ = recparallel.initialize(
        model=workload.recommender(), config=config, training_data=windows, max_length=workload.length
    )
    return engine, endless(loader)


def _turn(engine: Any, batches: Iterator[Any], *, steps: int) -> list[float]:
    made = [next(batches) for _ in range(steps * engine.micro_batches)]
    dist.barrier()
    start = time.perf_counter()
    taken = iter(made)
    for _ in range(steps):
        engine.train_batch(taken)
    dist.barrier()
    seconds = time.perf_counter() - start
    return [
        seconds,
        sum(map(sequences_of, made)),
        sum(int((batch[1] != -100).sum()) for batch in made),
        sum(batch[0].numel() for batch in made),
    ]


if __name__ == "__main__":
    main(Order.from_json(sys.argv[1]))
