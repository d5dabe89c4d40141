"""With a codec, a tied table of which a step touches few rows goes by these rows on every stage, and is not handed over."""

import pytest
from training import Run, make_engine, reference, train

RUN = Run(loss="sampled_softmax", num_items=600, steps=6, compression={"codec": "int8"})


def trained(run):
    """Losses, ways of exchange, tables that were handed over, and whether copies are the same in the end."""
    import torch.distributed as dist
    from test_hooks import tied_copies_equal

    from recparallel import events
    from recparallel.engines.bindings import Bindings

    engine = make_engine(run)
    ways, handed_over, bindings, broadcast = [], [], Bindings(), dist.broadcast

    def counted(tensor, *args, **kwargs):
        if tensor.dim() and tensor.numel() >= 41 * 16:  # DeepSpeed's loss and flags are smaller than any table
            handed_over.append(tensor.numel())
        return broadcast(tensor, *args, **kwargs)

    bindings.bind(dist, "broadcast", counted)
    try:
        with events.subscribe(lambda event: ways.append(event.codec) if isinstance(event, events.Exchange) else None):
            losses = train(engine, run)
    finally:
        bindings.remove()
    return losses, ways, handed_over, tied_copies_equal(engine)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_few_rows_are_exchanged_by_each_stage(pools, dtype):
    run = Run(**{**vars(RUN), "dtype": dtype})
    for losses, ways, handed_over, equal in pools[4].run(trained, run=run):
        assert losses == pytest.approx(reference(run), rel=2e-2)
        assert ways.count("rows") == run.steps
        assert handed_over == []
        assert equal


def test_a_table_that_is_touched_everywhere_is_handed_over(pools):
    run = Run(steps=3, compression={"codec": "int8"})
    for losses, ways, handed_over, equal in pools[4].run(trained, run=run):
        assert losses == pytest.approx(reference(run), rel=2e-2)
        assert "rows" not in ways
        assert handed_over == [(run.num_items + 1) * 16] * run.steps
        assert equal
