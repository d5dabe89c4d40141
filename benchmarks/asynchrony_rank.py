"""``python -m benchmarks.asynchrony_rank ORDER``: what each rank runs: one way of data parallelism for a while, and what it did.

A way with modes of ours makes its worlds itself; a synchronous side is one world of all ranks.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import recparallel
from benchmarks import rank as bench
from benchmarks.batches import micro_batches
from benchmarks.peers.deepspeed_config import config_of
from benchmarks.peers.sides import get_side
from benchmarks.peers.trainer import Job
from recparallel import events

_TIMEOUT = timedelta(seconds=240)


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        job: workload and setting, as JSON; its side where ``mode`` is None.
        mode: the section ``data_parallel``; ``{}`` exchanges nothing.
        seconds: to measure for, at least.
        rounds_of: steps behind which replicas that wait for each other may end.
    """

    job: dict[str, Any]
    mode: dict[str, Any] | None
    seconds: float
    rounds_of: int

    def to_json(self) -> str:
        """For the command line of a rank."""
        return json.dumps(asdict(self))


def main(order: Order) -> None:
    """Train and report: ``sequences`` of this rank, ``seconds``, ``sent_bytes``, ``steps``, and of exchanges the seconds that it
    ``waited`` and the mean ``staleness`` of its progress."""
    torch.set_num_threads(1)
    job = Job.from_json(order.job)
    run = _synchronous if order.mode is None else _apart
    bench.write_report(run(job, order))


def _synchronous(job: Job, order: Order) -> dict[str, Any]:
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    trainer = get_side(job.side).build(job, job.spec.recommender())
    share = job.spec.global_batch // dist.get_world_size()
    numbers = iter(range(10**6))

    def all_done(done: bool) -> bool:
        told = torch.tensor([int(done)])
        dist.broadcast(told, 0)
        return bool(told)

    trainer.step(next(numbers))  # builds what is built late
    dist.barrier()
    report = _measured(lambda: trainer.step(next(numbers)), share, order, all_done, every=1)
    dist.destroy_process_group()
    return report


def _apart(job: Job, order: Order) -> dict[str, Any]:
    assert order.mode is not None
    config = config_of(job, num_replicas=_world_size())
    mode = order.mode or {"mode": "local_sgd", "local_steps": 10**6}
    config["recparallel"] = {"stages": 1, "attention": "fastest", "data_parallel": mode}
    share = job.spec.global_batch // _world_size()
    sample = micro_batches(job.spec, 0, micro_batch=job.setting.micro_batch, replica=0, num_replicas=_world_size())[0]
    engine, *_ = recparallel.initialize(model=job.spec.recommender(), config=config, sample=sample)
    replicas = engine.recparallel.replicas
    numbers = iter(range(10**6))

    def step() -> None:
        number = next(numbers)
        own = micro_batches(
            job.spec,
            number,
            micro_batch=job.setting.micro_batch,
            replica=replicas.world.number,
            num_replicas=replicas.world.count,
        )
        engine.train_batch(iter(own))

    waits = bool(order.mode) and order.mode["mode"] != "bounded_staleness"
    for _ in range(order.rounds_of if order.mode else 1):
        step()
    replicas.as_first(None)
    told: list[events.ReplicaExchange] = []
    with events.subscribe(lambda event: told.append(event) if isinstance(event, events.ReplicaExchange) else None):
        report = _measured(
            step, share, order, replicas.as_first if waits else bool, every=order.rounds_of if waits else 1
        )
    report["waited"] = sum(event.waited for event in told)
    own = [event.staleness[replicas.world.number] for event in told]
    report["staleness"] = sum(own) / len(own) if own else 0.0
    if order.mode:
        engine.recparallel.meet()
    return report


def _measured(
    step: Callable[[], Any], share: int, order: Order, all_done: Callable[[bool], bool], *, every: int
) -> dict[str, Any]:
    start, begin, steps, done = bench.read(), time.monotonic(), 0, False
    while not done:
        step()
        steps += 1
        if steps % every == 0:
            done = all_done(time.monotonic() - begin >= order.seconds)
    used = bench.read() - start
    sent = used.sent_bytes or 0
    return {"sequences": steps * share, "seconds": used.seconds, "sent_bytes": sent, "steps": steps}


def _world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


if __name__ == "__main__":
    main(Order(**json.loads(sys.argv[1])))
