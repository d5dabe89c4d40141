"""``python -m benchmarks.rebalance_rank ORDER``: what each rank runs: one side for a number of steps, while the cluster changes.

Step 0 is reported before the side is built, the training steps are counted from 1: changes hang on them.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import rank as bench
from benchmarks.peers.sides import get_side
from benchmarks.peers.trainer import Job
from recparallel import events

_TIMEOUT = timedelta(seconds=240)


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        job: the side, as JSON.
        steps: how many.
        traced: steps whose instructions are reported one by one.
        load, save: folders of checkpoints to begin with, and to end with.
    """

    job: dict[str, Any]
    steps: int
    traced: tuple[int, ...] = ()
    load: str = ""
    save: str = ""

    def to_json(self) -> str:
        """For the command line of a rank."""
        return json.dumps(asdict(self))


@dataclass
class Recorder:
    """Events of this rank.

    Attributes:
        spans: ``(name, begin, end)`` of each instruction of the step that is recorded now, by the clock of the machine.
        moves, outcomes: of layers, as dicts.
    """

    spans: list[tuple[str, float, float]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Phase):
            end = time.monotonic()
            self.spans.append((event.name, end - event.seconds, end))
        elif isinstance(event, events.Move):
            self.moves.append(asdict(event))
        elif isinstance(event, events.MoveOutcome):
            self.outcomes.append(asdict(event))


def main(order: Order) -> None:
    """Build, train, report: ``steps`` with ``begin``, ``seconds`` and this rank's ``stage_seconds``, ``spans`` of traced steps,
    ``moves`` and ``outcomes``, when it was ``built``, and ``save_seconds``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    bench.report_step(0)
    time.sleep(0.3)  # the cluster looks every 0.1 s
    job = Job.from_json(order.job)
    trainer: Any = get_side(job.side).build(job, job.spec.recommender())
    if order.load:
        trainer.load(Path(order.load))
    dist.barrier()
    report: dict[str, Any] = {"built": time.monotonic(), "steps": [], "spans": {}}
    recorder = Recorder()
    with events.subscribe(recorder):
        for number in range(1, order.steps + 1):
            bench.report_step(number)
            recorder.spans.clear()
            begin = time.monotonic()
            told = trainer.step(number).extra
            seconds = time.monotonic() - begin
            passes = sum(end - start for name, start, end in recorder.spans if name in ("forward", "backward"))
            stage = told.get("stage_seconds", passes)
            report["steps"].append({"begin": begin, "seconds": seconds, "stage_seconds": stage})
            if number in order.traced:
                report["spans"][number] = list(recorder.spans)
    begin = time.monotonic()
    if order.save:
        trainer.save(Path(order.save))
    dist.barrier()
    report |= {"moves": recorder.moves, "outcomes": recorder.outcomes, "save_seconds": time.monotonic() - begin}
    bench.write_report(report)
    trainer.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    content = json.loads(sys.argv[1])
    main(Order(**{**content, "traced": tuple(content["traced"])}))
