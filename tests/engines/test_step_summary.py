"""What every rank's steps cost, brought together on rank 0."""

import pytest


def two_steps():
    import torch.distributed as dist

    from recparallel import events
    from recparallel.engines.step_summary import StepSummary

    summary, rank = StepSummary(), dist.get_rank()
    with events.subscribe(summary):
        for step in range(2):
            events.emit(events.Phase("forward", 0.5 + rank))
            events.emit(events.Transfer("send", 1, 64, 0.1))
            events.emit(events.Exchange(0, "top_k", 400, 8, 0.2))
            events.emit(events.TiedExchange("rows", 1000, 10 * (1 + step), 0.1))
            events.emit(events.StepDone(step, 0.7, 1.5, 64))
    return summary.gather(), summary.gather()


def test_means_per_step_of_every_rank_come_to_rank_0_once(pools):
    (first, second), others = pools[2].run(two_steps)
    assert others == ([], [])
    for rank, means in enumerate(first):
        assert means == pytest.approx(
            {
                "forward_s": 0.5 + rank,
                "boundary_sent_bytes": 64,
                "exchange_wire_bytes": 8,
                "exchange_dense_bytes": 400,
                "tied_wire_bytes": 15,
                "tied_dense_bytes": 1000,
            }
        )
    assert second == [{}, {}]
