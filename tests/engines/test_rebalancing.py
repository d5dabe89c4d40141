"""Live rebalancing in a training: a rank that becomes slow hands layers on and gets them back; losses stay those of one process."""

import time
from dataclasses import replace

import pytest
from training import Run, make_engine, reference, train

EAGER = {"rebalance": {"every": 2, "horizon": 10**6, "min_gain": 0.05, "tolerance": 0.3}}
RUN = Run(partition="adaptive", partition_options=EAGER, tied=False, clip=0.5)


class Pace:
    """Makes every layer's forward take some milliseconds, and those of one rank longer from a step on."""

    def __init__(self, monkeypatch):
        from recparallel.models.layers import DecoderBlock, NextItemHead, TrunkPart

        self.milliseconds = 5.0
        for kind in (DecoderBlock, TrunkPart, NextItemHead):
            monkeypatch.setattr(kind, "forward", self._slowed(kind.forward))

    def _slowed(self, forward):
        def slow(module, *args, **kwargs):
            time.sleep(self.milliseconds / 1e3)
            return forward(module, *args, **kwargs)

        return slow


def train_on_drifting_ranks(run, slow, phases):
    """Losses, and the events of moves; ``phases`` has the steps at which rank ``slow`` becomes slow and recovers."""
    import torch.distributed as dist

    from recparallel import events

    seen = []

    def keep(event):
        if isinstance(event, (events.Move, events.MoveOutcome)):
            seen.append(event)

    with pytest.MonkeyPatch.context() as monkeypatch, events.subscribe(keep):
        pace = Pace(monkeypatch)
        engine = make_engine(run)
        losses = []
        for step in range(run.steps):
            if step in phases and dist.get_rank() == slow:
                pace.milliseconds = phases[step]
            losses += train(engine, replace(run, steps=step + 1), first=step)
        plan = engine.recparallel.plan.partition.bounds
    return losses, seen, plan


def test_a_slow_rank_hands_layers_on_and_gets_them_back(pools):
    from recparallel.events import Move, MoveOutcome

    run = replace(RUN, steps=45)
    everyone = pools[2].run(train_on_drifting_ranks, run=run, slow=1, phases={12: 25.0, 28: 5.0})
    for losses, seen, _ in everyone:
        assert losses == pytest.approx(reference(run), rel=1e-5)
        moves = [event for event in seen if isinstance(event, Move)]
        away = [move for move in moves if 12 < move.step <= 28]
        back = [move for move in moves if move.step > 28]
        assert len(away) == len(back) == 1, moves
        assert away[0].after[1] > away[0].before[1]  # the first stage has more layers now
        assert back[0].after[1] < back[0].before[1]
        assert "rank 1" in away[0].reason
        assert not away[0].error
        assert away[0].seconds > 0
        assert [event.paid for event in seen if isinstance(event, MoveOutcome)][-2:] == [True, True]
    assert everyone[0][2] == everyone[1][2]
    assert sum(move.num_bytes for _, seen, _ in everyone for move in seen if isinstance(move, Move)) > 0
