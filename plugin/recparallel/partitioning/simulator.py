"""How long a training step takes: the schedule of every stage played through, event by event.

A blocking transfer begins when both of its ends are there (gloo and NCCL both wait for the receiver) and takes the time of
its link. One beside the computation begins when it is sent, behind those before it: one tensor at a time crosses a boundary
in each direction. What follows the schedule, the exchange of tied gradients and the optimizer's update, is added stage by stage.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from recparallel.partitioning.schedules import BACKWARD, COMPUTE, FORWARD, Schedule, Transfer

Span: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class StepCosts:
    """Seconds of everything in a step, by chunk (one a stage unless stages are virtual) or by stage.

    Attributes:
        forward, backward: of one micro-batch, by chunk.
        transfer: of one tensor, by boundary: entry ``b`` lies between chunks ``b`` and ``b + 1``.
        update: of the optimizer, by stage.
        ties: ``(stages, seconds)``: an exchange that these stages make together behind the schedule, in this order.
        others: of further kinds of computation, by kind from 2 on and by stage.
        messages: of further kinds of transfers, by kind and by the number that stands in the place of the boundary.
    """

    forward: Sequence[float]
    backward: Sequence[float]
    transfer: Sequence[float]
    update: Sequence[float] = ()
    ties: Sequence[tuple[Sequence[int], float]] = ()
    others: Sequence[Sequence[float]] = ()
    messages: Mapping[int, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulated:
    """What came of it.

    Attributes:
        seconds: of the step, until the last stage is done.
        busy: seconds that each stage computes.
        ends: when each stage has run its schedule.
        passes: ``(begin, end)`` of what was computed, by stage; empty unless traced.
        transfers: ``(begin, end)`` of tensors that crossed beside the computation, by boundary; empty unless traced.
    """

    seconds: float
    busy: tuple[float, ...]
    ends: tuple[float, ...]
    passes: Mapping[int, Sequence[Span]] = field(default_factory=dict)
    transfers: Mapping[int, Sequence[Span]] = field(default_factory=dict)


def simulate(schedule: Schedule, costs: StepCosts, *, traced: bool = False) -> Simulated:
    """Play a schedule through.

    Args:
        traced: say when what happened, too.

    Raises:
        RuntimeError: the schedule never ends: stages wait for each other.
    """
    stages = len(schedule)
    clock, busy, at = [0.0] * stages, [0.0] * stages, [0] * stages
    posted: dict[tuple[Transfer, bool], float] = {}
    waiting: dict[Transfer, int] = {}
    free: dict[tuple[int, int], float] = {}
    seconds = (costs.forward, costs.backward, *costs.others)
    ready = list(range(stages))
    passes: defaultdict[int, list[Span]] = defaultdict(list)
    transfers: defaultdict[int, list[Span]] = defaultdict(list)
    while ready:
        stage = ready.pop()
        program, now = schedule[stage], clock[stage]
        position = at[stage]
        while position < len(program):
            code, first, second = program[position]
            if code == COMPUTE:
                took = seconds[first][second]
                now += took
                busy[stage] += took
                position += 1
                if traced:
                    passes[stage].append((now - took, now))
                continue
            until, missing = now, None
            for transfer, sends in second:
                if (transfer, sends) not in posted:
                    posted[transfer, sends] = now
                    if (other := waiting.pop(transfer, None)) is not None:
                        ready.append(other)
                if sends and not first:
                    continue  # it runs beside the computation
                if (transfer, not sends) not in posted:
                    missing = transfer
                    continue
                kind, _, boundary = transfer
                took = costs.messages.get(kind, costs.transfer)[boundary]
                if first:
                    done = max(posted[transfer, True], posted[transfer, False]) + took
                else:
                    done = max(posted[transfer, True], free.get((kind, boundary), 0.0)) + took
                    free[kind, boundary] = done
                    if traced and kind in (FORWARD, BACKWARD):
                        transfers[boundary].append((done - took, done))
                until = max(until, done)
            if missing is not None:
                waiting[missing] = stage
                break
            now = until
            position += 1
        clock[stage], at[stage] = now, position
    if any(position < len(program) for position, program in zip(at, schedule)):
        stuck = [stage for stage in range(stages) if at[stage] < len(schedule[stage])]
        raise RuntimeError(f"stages {stuck} wait for each other for ever")
    ends = tuple(clock)
    for members, took in costs.ties:
        done = max(clock[stage] for stage in members) + took
        for stage in members:
            clock[stage] = done
    updates = costs.update or [0.0] * stages
    return Simulated(max(now + update for now, update in zip(clock, updates)), tuple(busy), ends, passes, transfers)
