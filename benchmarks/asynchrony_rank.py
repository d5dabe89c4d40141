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
from recparallel.engines.places import data_parallel_place

_TIMEOUT = timedelta(seconds=240)

_SETTLING = 4
"""Steps behind which replicas of one world have their shares."""


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        job: workload and setting, as JSON; its side where ``mode`` is None.
        mode: the section ``data_parallel``; ``{}`` exchanges nothing.
        seconds: to measure for, about.
        rounds_of: steps of a round; replicas that wait for each other make whole rounds, so many as the one before takes to fill
            the time.
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

    def step() -> None:
        trainer.step(next(numbers))

    step()  # builds what is built late
    dist.barrier()
    count = torch.tensor([_count(step, 1, order)])
    dist.broadcast(count, 0)
    report = _measured(step, share, lambda steps, _: steps == int(count))
    dist.destroy_process_group()
    return report


def _apart(job: Job, order: Order) -> dict[str, Any]:
    assert order.mode is not None
    share = job.spec.global_batch // _world_size()  # of the launch: replicas are worlds of their own from then on
    config = config_of(job, num_replicas=_world_size())
    mode = order.mode or {"mode": "local_sgd", "local_steps": 10**6}
    config["recparallel"] = {"stages": 1, "attention": "fastest", "data_parallel": mode}
    if mode["mode"] == "synchronous":
        config["recparallel"]["compression"] = "auto"
    sample = micro_batches(job.spec, 0, replica=0, micro_batch=job.setting.micro_batch, num_replicas=_world_size())[0]
    engine, *_ = recparallel.initialize(model=job.spec.recommender(), config=config, sample=sample)
    replicas = engine.recparallel.replicas
    numbers = iter(range(10**6))

    def step() -> None:
        engine.train_batch(iter(_own_batches(engine, job, next(numbers))))

    for _ in range(1 if replicas is not None else _SETTLING):
        step()
    in_lockstep = bool(order.mode) and order.mode["mode"] != "bounded_staleness"
    count = _count(step, order.rounds_of, order) if order.mode else 0
    # The only decision that all take together: another one would wait for what is on its way.
    count = _as_first(engine, count if in_lockstep else 0)
    told: list[events.ReplicaExchange] = []
    with events.subscribe(lambda event: told.append(event) if isinstance(event, events.ReplicaExchange) else None):
        report = _measured(
            step,
            share,
            lambda steps, spent: steps == count if count else spent >= order.seconds,
        )
    if replicas is None:
        return report
    report["waited"] = sum(event.waited for event in told)
    own = [event.staleness[replicas.world.number] for event in told]
    report["staleness"] = sum(own) / len(own) if own else 0.0
    if order.mode:
        engine.recparallel.meet()
    return report


def _own_batches(engine: Any, job: Job, number: int) -> list[Any]:
    """Of this replica, in a step."""
    place, count = data_parallel_place(engine)
    if (shares := engine.recparallel.shares) is None:
        return micro_batches(job.spec, number, replica=place, micro_batch=job.setting.micro_batch, num_replicas=count)
    ((inputs, labels),) = micro_batches(job.spec, number, replica=0, micro_batch=job.spec.global_batch, num_replicas=1)
    own = shares.rows[place]
    begin = engine.micro_batches * sum(shares.rows[:place])
    return [(inputs[i : i + own], labels[i : i + own]) for i in range(begin, begin + engine.micro_batches * own, own)]


def _as_first(engine: Any, count: int) -> int:
    if engine.recparallel.replicas is not None:
        return int(engine.recparallel.as_first(count))
    told = torch.tensor([count])
    dist.broadcast(told, 0)
    return int(told)


def _count(step: Callable[[], Any], of: int, order: Order) -> int:
    """Steps that fill the time, in whole rounds ``of`` so many, one of which is made."""
    begin = time.monotonic()
    for _ in range(of):
        step()
    return of * max(1, round(order.seconds / (time.monotonic() - begin)))


def _measured(step: Callable[[], Any], share: int, is_done: Callable[[int, float], bool]) -> dict[str, Any]:
    start, begin, steps = bench.read(), time.monotonic(), 0
    while not is_done(steps, time.monotonic() - begin):
        step()
        steps += 1
    used = bench.read() - start
    sent = used.sent_bytes or 0
    return {"sequences": steps * share, "seconds": used.seconds, "sent_bytes": sent, "steps": steps}


def _world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


if __name__ == "__main__":
    main(Order(**json.loads(sys.argv[1])))
