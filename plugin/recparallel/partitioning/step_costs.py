"""From a profile and a cut to what the simulator plays: seconds by stage, by boundary, and behind the schedule."""

from collections.abc import Sequence
from dataclasses import replace

from recparallel.errors import PartitionError
from recparallel.partitioning.costs import Costs, Group
from recparallel.partitioning.schedules import interleaved
from recparallel.partitioning.simulator import Span, StepCosts, simulate
from recparallel.plan import Partition, Profile


def step_costs(costs: Costs, order: Sequence[Group], bounds: Sequence[int]) -> StepCosts:
    """Costs of a cut, by chunk; ``order`` has the device of each."""
    spans = list(zip(bounds, bounds[1:]))
    layers = costs.profile.layers
    # A pass goes with one tensor over each boundary: a forward takes an activation in and hands one on, a backward gradients.
    beside = [
        float(costs.busy(g, left)[a] + costs.busy(g, right)[b])
        for g, left, right, (a, b) in zip(order, (None, *order), (*order[1:], None), spans)
    ]
    return StepCosts(
        forward=[
            float(costs.forward[b] - costs.forward[a]) / g.speed + busy for g, (a, b), busy in zip(order, spans, beside)
        ],
        backward=[
            float(costs.backward[b] - costs.backward[a]) / g.speed + busy
            for g, (a, b), busy in zip(order, spans, beside)
        ],
        transfer=[float(costs.transfer(x, y)[cut]) for x, y, cut in zip(order, order[1:], bounds[1:])],
        update=[sum(layer.update_seconds for layer in layers[a:b]) / g.speed for g, (a, b) in zip(order, spans)],
        ties=tied_exchanges(costs, order, bounds),
    )


def tied_exchanges(costs: Costs, order: Sequence[Group], bounds: Sequence[int]) -> list[tuple[list[int], float]]:
    """For each table that lies on several stages: these stages, and the seconds of summing its gradients over them.

    Over ``p`` stages a ring brings ``2 (p - 1) / p`` of the table over its slowest link, in ``2 (p - 1)`` turns. By rows
    (:class:`recparallel.collectives.rows.RowSum`) come ``p - 1`` times as many as the stage with the most has touched, in
    ``3 (p - 1)`` turns: how many they are, their numbers (whose few bytes are left out), and they. The engine takes what is less.
    """
    number = costs.num_micro_batches
    touched: dict[str, dict[int, float]] = {}
    sizes: dict[str, int] = {}
    for stage, (a, b) in enumerate(zip(bounds, bounds[1:])):
        for layer in costs.profile.layers[a:b]:
            if layer.tie is not None:
                sizes[layer.tie] = layer.summed_bytes
                own = touched.setdefault(layer.tie, {})
                own[stage] = own.get(stage, 0.0) + layer.touched_bytes(number)
    exchanges = []
    for tie, by_stage in touched.items():
        if len(by_stage) < 2:
            continue
        stages, p = list(by_stage), len(by_stage)
        links = [costs.link(order[a], order[b]) for a in stages for b in stages if a < b]
        turns = [(link.latency_seconds, 1 / link.bytes_per_second) for link in links if link is not None]
        latency, per_byte = (max(column) for column in zip(*turns)) if turns else (0.0, 0.0)
        rows, dense = max(by_stage.values()), 2 / p * sizes[tie]
        turn = 3 if rows < dense else 2
        exchanges.append((stages, (p - 1) * (turn * latency + min(rows, dense) * per_byte)))
    return exchanges


def computing_seconds(profile: Profile, partition: Partition) -> list[float]:
    """Seconds that each stage computes in a step, one chunk a stage.

    A transfer that runs beside the computation holds up a stage only where there is some: in proportion to the share of the
    transfer during which the stage computes, in the simulation. What a stage waits for costs it nothing.
    """
    costs = Costs(profile, partition.num_stages)
    order, bounds, number = _order(costs, partition), partition.bounds, micro_batches_of(profile)
    schedule = costs.schedule.programs(partition.num_stages, number)
    played = simulate(schedule, step_costs(costs, order, bounds), traced=True)
    seconds = []
    for stage, (group, a, b) in enumerate(zip(order, bounds, bounds[1:])):
        took = number * float(costs.seconds[b] - costs.seconds[a]) / group.speed
        for boundary, cut, other in ((stage - 1, a, stage - 1), (stage, b, stage + 1)):
            for transfer in played.transfers.get(boundary, ()):
                took += float(costs.busy(group, order[other])[cut]) * _covered(transfer, played.passes[stage])
        seconds.append(took)
    return seconds


def _covered(one: Span, others: Sequence[Span]) -> float:
    """The share of an interval that others, which do not overlap, cover; all of it where it has no length."""
    begin, end = one
    together = sum(max(min(end, last) - max(begin, first), 0.0) for first, last in others)
    return together / (end - begin) if end > begin else 1.0


def _order(costs: Costs, partition: Partition) -> list[Group]:
    return [costs.groups[d] for d in partition.device_order] or list(costs.groups)


def predict_step(profile: Profile, partition: Partition) -> float:
    """Seconds of a training step: under the profile's schedule, or with virtual stages under Megatron's interleaved one.

    Raises:
        PartitionError: the profile does not say how many micro-batches a step has, or they do not suit the schedule.
    """
    stages, virtual = partition.num_stages, partition.virtual
    if virtual > 1:  # its sends run beside the computation, whatever a pipeline of one chunk a stage would run
        profile = profile.model_copy(update={"schedule": "eager_1f1b"})
    costs = Costs(profile, stages)
    order = _order(costs, partition)
    number = micro_batches_of(profile)
    if virtual == 1:
        schedule = costs.schedule.programs(stages, number)
        return simulate(schedule, step_costs(costs, order, partition.bounds)).seconds
    try:
        schedule = interleaved(stages, number, virtual)
    except ValueError as error:
        raise PartitionError(str(error)) from error
    own = step_costs(costs, order * virtual, partition.bounds)
    by_stage = [sum(own.update[stage::stages]) for stage in range(stages)]
    ties = [(sorted({chunk % stages for chunk in chunks}), seconds) for chunks, seconds in own.ties]
    ties = [(members, seconds) for members, seconds in ties if len(members) > 1]
    return simulate(schedule, replace(own, update=by_stage, ties=ties)).seconds


def micro_batches_of(profile: Profile) -> int:
    """Micro-batches of a step.

    Raises:
        PartitionError: the profile does not say.
    """
    if profile.num_micro_batches is None:
        raise PartitionError(
            "the time of a step depends on how many micro-batches it has, and num_micro_batches of the profile is not set"
        )
    return profile.num_micro_batches
