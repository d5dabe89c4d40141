"""Batches that are dealt out: every row once an epoch, whoever comes for it."""

from collections import Counter, defaultdict
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparallel.data.dealt_sampler import DealtSampler
from recparallel.data.sampler import EMPTY_ROW, GlobalBatchSampler


class Counters:
    """What the store counts, and the training's clock."""

    def __init__(self) -> None:
        self.dealt: dict[int, int] = defaultdict(int)
        self.clock = 0

    def deal(self, start: int, restarts: int) -> int:
        self.dealt[restarts] += 1
        return start + self.dealt[restarts] - 1


def samplers(counters: Counters, num_rows: int, *, worlds: int, inside: int) -> list[list[DealtSampler]]:
    """By world: of each of its ranks. Only the first rank of a world may ask the counter; the others hear what it was told."""
    made = []
    for _ in range(worlds):
        told: list[int] = []

        def asks(start: int, restarts: int, told: list[int] = told) -> int:
            told.append(counters.deal(start, restarts))
            return told[-1]

        def hears(start: int, restarts: int, told: list[int] = told) -> int:
            return told[-1]

        made.append(
            [
                DealtSampler(
                    num_rows,
                    worlds=worlds,
                    deal=hears if rank else asks,
                    trained=lambda: counters.clock,
                    micro_batch=2,
                    num_micro_batches=1,
                    num_replicas=worlds * inside,
                    replica=rank,
                    seed=1,
                )
                for rank in range(inside)
            ]
        )
    return made


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 2), st.lists(st.integers(0, 2), min_size=60, max_size=60))
def test_an_epoch_has_every_row_once_whoever_comes(num_rows, worlds, inside, turns):
    made = samplers(Counters(), num_rows, worlds=worlds, inside=inside)
    readers = [[iter(sampler) for sampler in world] for world in made]
    seen, ended = Counter(), set()
    for turn in [*turns, *range(worlds)] * num_rows:
        if turn % worlds not in ended:
            for reader in readers[turn % worlds]:
                batch = next(reader, None)
                if batch is None:
                    ended.add(turn % worlds)
                else:
                    seen.update(row for rows in batch for row in rows.tolist() if row != EMPTY_ROW)
    assert ended == set(range(worlds))
    assert seen == Counter(range(num_rows))
    assert all(sampler.epoch >= 1 for world in made for sampler in world)


def test_who_comes_in_turns_reads_what_the_others_deal():
    made = samplers(Counters(), 23, worlds=2, inside=1)
    others = [
        GlobalBatchSampler(23, micro_batch=2, num_micro_batches=1, num_replicas=2, replica=number, seed=1)
        for number in range(2)
    ]
    for (a, b), (c, d) in zip(zip(made[0][0], made[1][0]), zip(*others)):
        assert (a[0].tolist(), b[0].tolist()) == (c[0].tolist(), d[0].tolist())


def test_it_goes_on_where_the_training_was():
    counters = Counters()
    ((first,), (second,)) = samplers(counters, 40, worlds=2, inside=1)
    ahead = [rows for sampler in (first, second) for (rows,) in islice(sampler, 4)]
    counters.clock = 3  # of four dealt steps, three are counted
    state = first.state_dict()
    assert (state["epoch"], state["step"]) == (0, 3)
    fresh = Counters()
    ((third,), (fourth,)) = samplers(fresh, 40, worlds=2, inside=1)
    for sampler in (third, fourth):
        sampler.load_state_dict(state)
    rest = [rows for pair in zip(third, fourth) for (rows,) in pair]
    counted = [row for rows in ahead for row in rows.tolist()]
    again = [row for rows in rest for row in rows.tolist()]
    assert set(counted) | set(again) == set(range(40))  # nothing is left out
    assert len(set(counted) & set(again)) == 4  # one step of both
    fresh.clock = 7
    assert third.state_dict() == {**state, "epoch": 1, "step": 0}


def test_another_epoch_can_be_gone_to():
    counters = Counters()
    ((only,),) = samplers(counters, 8, worlds=1, inside=1)
    counters.clock = 2
    only.set_epoch(5)
    assert (only.state_dict()["epoch"], only.state_dict()["step"]) == (5, 0)
    assert len(list(only)) == 4
    with pytest.raises(Exception, match="must not be negative"):
        only.set_epoch(-1)
