"""When to move layers between the stages of a running pipeline, and where to.

A policy with hysteresis. It looks at what each rank's passes take, and holds still unless

1. two looks in a row agree on a speed that differs from the one of the last decision,
2. the best cut for the speeds as they are has a step that is shorter by a share worth moving for,
3. and what that saves over a horizon is more than the move costs.

A move behind which steps take longer than before, by more than half of what is worth moving for, is taken back once, and not made
again at the same speeds.

Wahib, Soyturk & Unat ("Balanced and elastic end-to-end training of dynamic LLMs", arXiv:2505.14864) move layers of models whose
layers change; here it is the devices that do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from recparallel.errors import PartitionError
from recparallel.partitioning.costs import Costs
from recparallel.partitioning.even_cut import minimize_step_any_order_evenly, minimize_step_evenly
from recparallel.partitioning.recompute import recomputing
from recparallel.partitioning.step_costs import predict_step
from recparallel.plan import Device, Partition, Profile

Speeds = tuple[float, ...]


def cut_at_the_start(profile: Profile, stages: int) -> Partition:
    """What an adaptive pipeline begins with: :func:`~recparallel.partitioning.even_cut.minimize_step_any_order_evenly`. Where its
    stages run stays; how many layers they have changes."""
    return minimize_step_any_order_evenly(profile, stages).model_copy(update={"method": "adaptive"})


@dataclass(frozen=True)
class Rules:
    """How eager the policy is.

    Attributes:
        horizon: steps over which a move must pay for itself.
        min_gain: share of a step that it must save.
        tolerance: share by which speeds may differ and still count as the same.
    """

    horizon: int
    min_gain: float
    tolerance: float


@dataclass(frozen=True)
class Look:
    """What was measured since the look before.

    Attributes:
        pass_seconds: by rank, of a forward and a backward of one micro-batch, without waiting; None where a rank has none.
        step_seconds: of a training step.
    """

    pass_seconds: tuple[float | None, ...]
    step_seconds: float


@dataclass(frozen=True)
class Decision:
    """What a look led to.

    Attributes:
        reason: why, in words.
        target: cut to move to; None is to stay.
        gain: predicted share of a step that the move saves; 0 for one that is taken back.
        cost_seconds: predicted, of the move.
        takes_back: the target is the cut before the last move.
        paid: what came of the last move, once two looks agree: whether steps are shorter than before it.
        share_saved: by it, of a step, measured.
        failed: nothing could be decided: a clock failed, or no cut fits.
    """

    reason: str
    target: Partition | None = None
    gain: float = 0.0
    cost_seconds: float = 0.0
    takes_back: bool = False
    paid: bool | None = None
    share_saved: float | None = None
    failed: bool = False


@dataclass(frozen=True)
class _Steady:
    """What ranks' speeds and steps were for a while."""

    speeds: Speeds
    step_seconds: float


@dataclass(frozen=True)
class _Move:
    """One that was made and not judged yet: the cut before it, and how things were then."""

    before: Partition
    when: _Steady


class RebalancePolicy:
    """Decides for one pipeline; pure: it measures nothing and moves nothing itself.

    Args:
        profile: by which the pipeline was cut.
        partition: that it runs.
        rules: how eager it is.
        num_ranks: of the job; each device of the profile is one.
        cut_by_profile: the partition is the best one for the profile. If it is not, the first speeds that are known decide.
    """

    def __init__(
        self, profile: Profile, partition: Partition, rules: Rules, *, num_ranks: int, cut_by_profile: bool = True
    ) -> None:
        self._order = partition.device_order or tuple(range(partition.num_stages))
        devices = profile.devices or tuple(Device(name=f"rank {rank}") for rank in range(num_ranks))
        self._profile = recomputing(profile.model_copy(update={"devices": devices}), partition.recompute)
        self._per_stage = num_ranks // partition.num_stages
        self.partition, self._rules = partition, rules
        self._assumed: Speeds = tuple(device.relative_speed for device in devices)
        self._has_decided = cut_by_profile
        self._previous: _Steady | None = None
        self._unjudged: _Move | None = None
        self._refused: list[tuple[tuple[int, ...], Speeds]] = []
        self._overhead: float | None = None
        self._alike_looks: list[Speeds] = []

    def look(self, look: Look) -> Decision:
        """Judge the last move, if that is due, and decide about the next."""
        if silent := [rank for rank, seconds in enumerate(look.pass_seconds) if not _is_time(seconds)]:
            self._previous = None
            return Decision(f"rank {silent[0]} could not time its passes", failed=True)
        now = _Steady(self._speeds([seconds or 0.0 for seconds in look.pass_seconds]), look.step_seconds)
        before, self._previous = self._previous, now
        if before is None or not self._agree(now.speeds, before.speeds):
            return Decision("speeds are not known yet, or are changing")
        speeds = tuple((a + b) / 2 for a, b in zip(now.speeds, before.speeds))
        steady = _Steady(speeds, (now.step_seconds + before.step_seconds) / 2)
        verdict = self._judge(steady)
        if verdict is not None and verdict.target is not None:
            return verdict
        self._steady = steady
        decision = self._decide(steady)
        return decision if verdict is None else replace(decision, paid=verdict.paid, share_saved=verdict.share_saved)

    def moved(self, decision: Decision, *, seconds: float) -> None:
        """The pipeline runs the target of ``decision`` now; moving took so long."""
        assert decision.target is not None
        if not decision.takes_back:
            self._unjudged = _Move(self.partition, self._steady)
        self._overhead = max(0.0, seconds - self._transfer_seconds(decision.target))
        self.partition, self._previous = decision.target, None
        self._alike_looks.clear()

    def failed(self, decision: Decision) -> None:
        """The move could not be made: not again at these speeds."""
        assert decision.target is not None
        self._refused.append((decision.target.bounds, self._assumed))

    def _judge(self, steady: "_Steady") -> Decision | None:
        """What came of the last move; None if there is nothing to judge.

        A speed that seems to have changed with the move may be a layer that takes longer than the profile says: steps tell. The cut
        that was left is not gone back to at these speeds.
        """
        move, self._unjudged = self._unjudged, None
        if move is None:
            return None
        saved = 1 - steady.step_seconds / move.when.step_seconds
        if saved > -self._rules.min_gain / 2:
            self._refused.append((move.before.bounds, steady.speeds))
            return Decision("", paid=saved > 0, share_saved=saved)
        self._refused.append((self.partition.bounds, move.when.speeds))
        return Decision(
            f"steps take {steady.step_seconds:.3g} s, and took {move.when.step_seconds:.3g} s before the move: it is taken back",
            target=move.before,
            cost_seconds=self._cost(move.before, steady.step_seconds),
            takes_back=True,
            paid=False,
            share_saved=saved,
        )

    def _decide(self, steady: "_Steady") -> Decision:
        assumed = self._assumed
        if self._has_decided and self._alike(steady.speeds, assumed):
            self._alike_looks.append(steady.speeds)
            return Decision(f"no rank's speed has changed by more than {self._rules.tolerance:.0%}")
        speeds = self._over_time(steady.speeds)
        self._alike_looks.clear()
        changed = max(range(len(speeds)), key=lambda rank: abs(math.log(speeds[rank] / assumed[rank])))
        what = f"the speed of rank {changed} went from {assumed[changed]:.2f} to {speeds[changed]:.2f}"
        if not self._has_decided:
            what = "the cut was given, and now speeds are known"
        self._assumed, self._has_decided = speeds, True
        profile = self._at(speeds)
        try:
            best = minimize_step_evenly(profile, self.partition.num_stages)
        except PartitionError as error:
            return Decision(f"{what}, but there is no cut: {error}", failed=True)
        now, then = predict_step(profile, self._in_order(self.partition)), best.step_seconds or 0.0
        gain = 1 - then / now
        if best.bounds == self.partition.bounds or gain < self._rules.min_gain:
            return Decision(f"{what}; another cut would save {max(gain, 0.0):.1%} of a step")
        if any(best.bounds == bounds and self._alike(speeds, at) for bounds, at in self._refused):
            return Decision(f"{what}; the cut for that was tried, and did not pay or failed")
        target = best.model_copy(
            update={
                "device_order": self.partition.device_order,
                "method": self.partition.method,
                "recompute": self.partition.recompute,
                "optimal": False,
            }
        )
        cost = self._cost(target, steady.step_seconds)
        if (saved := gain * steady.step_seconds * self._rules.horizon) <= cost:
            return Decision(
                f"{what}; in {self._rules.horizon} steps a move would save {saved:.3g} s and cost {cost:.3g} s"
            )
        return Decision(what, target=target, gain=gain, cost_seconds=cost)

    def _speeds(self, pass_seconds: Sequence[float]) -> Speeds:
        """Of each rank: what its layers take at speed 1, by what they take now."""
        costs = Costs(self._profile, self.partition.num_stages)
        bounds = self.partition.bounds
        stage_of = {group: stage for stage, group in enumerate(self._order)}
        speeds = []
        for rank, seconds in enumerate(pass_seconds):
            stage = stage_of[rank // self._per_stage]
            work = float(costs.seconds[bounds[stage + 1]] - costs.seconds[bounds[stage]])
            # Layers that take no time tell nothing of a speed.
            speeds.append(work / seconds if work > 0 else self._profile.devices[rank].relative_speed)
        return tuple(speeds)

    def _over_time(self, speeds: Speeds) -> Speeds:
        """Those of ranks that have not changed are better known: the mean since the last decision."""
        means = [sum(of_rank) / len(of_rank) for of_rank in zip(speeds, *self._alike_looks)]
        return tuple(
            mean if self._near(speed, old) else speed for speed, mean, old in zip(speeds, means, self._assumed)
        )

    def _agree(self, now: Speeds, before: Speeds) -> bool:
        """Two looks tell the same: of each rank the same speed, or that it has not changed. What has slowed down all of them
        together does not count: no cut answers to it."""
        together = median(a / b for a, b in zip(now, before)) if len(now) > 2 else 1.0
        near = self._near
        return all(
            near(a / together, b) or (near(a, old) and near(b, old)) for a, b, old in zip(now, before, self._assumed)
        )

    def _alike(self, some: Speeds, others: Speeds) -> bool:
        return all(map(self._near, some, others))

    def _near(self, a: float, b: float) -> bool:
        return abs(math.log(a / b)) <= math.log1p(self._rules.tolerance)

    def _at(self, speeds: Speeds) -> Profile:
        """The profile with these speeds, its devices in the order of the stages that run on them: where a stage runs stays."""
        profile = self._profile
        devices = [
            device.model_copy(update={"relative_speed": speed}) for device, speed in zip(profile.devices, speeds)
        ]
        ranks = [group * self._per_stage + place for group in self._order for place in range(self._per_stage)]
        place_of = {rank: place for place, rank in enumerate(ranks)}
        links = tuple(
            link
            if link.between is None
            else link.model_copy(update={"between": (place_of[link.between[0]], place_of[link.between[1]])})
            for link in profile.links
        )
        return profile.model_copy(update={"devices": tuple(devices[rank] for rank in ranks), "links": links})

    def _in_order(self, partition: Partition) -> Partition:
        return partition.model_copy(update={"device_order": ()})

    def _cost(self, target: Partition, step_seconds: float) -> float:
        """Seconds: what has to cross the links, and what else the last move took, or about a step before there was one."""
        overhead = step_seconds if self._overhead is None else self._overhead
        return overhead + self._transfer_seconds(target)

    def _transfer_seconds(self, target: Partition) -> float:
        """Of the weights and the optimizer's state that change their stage; a stage's transfers share its link."""
        profile = self._at(self._assumed)
        costs = Costs(profile, target.num_stages)
        busy = [0.0] * target.num_stages
        for number, layer in enumerate(profile.layers):
            here, there = self.partition.stage_of(number), target.stage_of(number)
            link = None if here == there else costs.link(costs.groups[here], costs.groups[there])
            if link is not None:
                seconds = link.seconds(layer.parameter_bytes + layer.optimizer_bytes)
                busy[here] += seconds
                busy[there] += seconds
        return max(busy)


def _is_time(seconds: float | None) -> bool:
    return seconds is not None and math.isfinite(seconds) and seconds > 0
