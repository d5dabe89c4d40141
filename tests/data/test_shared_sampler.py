"""Global batches of which replicas read parts of different sizes: together they read what equal shares would."""

from hypothesis import given
from hypothesis import strategies as st

from recparallel.data.sampler import GlobalBatchSampler
from recparallel.data.shared_sampler import SharedSampler


@st.composite
def shared(draw):
    """Rows, micro-batches of a step, and for some steps the rows of a micro-batch of each replica."""
    replicas, micro, count = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shares = []
    for _ in range(12):
        cuts = sorted(
            draw(st.lists(st.integers(0, replicas * (micro - 1)), min_size=replicas - 1, max_size=replicas - 1))
        )
        shares.append([1 + b - a for a, b in zip([0, *cuts], [*cuts, replicas * (micro - 1)])])
    return draw(st.integers(1, 50)), micro, count, shares


@given(shared())
def test_a_step_has_the_rows_of_its_global_batch(drawn):
    num_rows, micro, count, shares = drawn
    common = {"micro_batch": micro, "num_micro_batches": count, "num_replicas": len(shares[0]), "seed": 2}
    step = 0
    samplers = [
        SharedSampler(num_rows, rows=lambda: shares[step % 12], replica=r, **common) for r in range(len(shares[0]))
    ]
    one = GlobalBatchSampler(
        num_rows, micro_batch=micro, num_micro_batches=count * len(shares[0]), num_replicas=1, replica=0, seed=2
    )
    for expected, *parts in zip(one, *samplers):
        assert [len(part) for part in parts] == [count] * len(parts)
        assert [len(rows) for part in parts for rows in part] == [n for n in shares[step % 12] for _ in range(count)]
        assert [row for part in parts for rows in part for row in rows.tolist()] == [
            row for rows in expected for row in rows.tolist()
        ]
        assert all(sampler.state_dict() == samplers[0].state_dict() for sampler in samplers)
        step += 1
    assert step == one.steps_per_epoch
