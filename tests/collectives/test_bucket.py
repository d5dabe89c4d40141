import inspect
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.collectives.bucket import Bucket

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)


def bucket_of(shapes, *, position=0, last=False):
    params = tuple(torch.zeros(shape) for shape in shapes)
    flat = torch.arange(float(sum(p.numel() for p in params)))
    return Bucket(flat, params, tuple(f"p{i}" for i in range(len(params))), position, last)


def test_it_offers_what_torchs_bucket_offers():
    theirs = {name for name in dir(dist.GradBucket) if not name.startswith("_")}
    assert {"buffer", "gradients", "index", "is_last", "parameters", "set_buffer"} <= theirs  # torch still says so
    for name in theirs:
        ours = inspect.signature(getattr(Bucket, name)).parameters
        assert len(ours) == (2 if name == "set_buffer" else 1)  # self, and what torch's takes


@settings(deadline=None)
@given(shapes=shapes)
def test_gradients_are_the_parts_of_the_buffer_in_the_shapes_of_the_parameters(shapes):
    bucket = bucket_of(shapes)
    gradients = bucket.gradients()
    assert [tuple(g.shape) for g in gradients] == shapes
    assert torch.equal(torch.cat([g.reshape(-1) for g in gradients]), bucket.buffer())
    assert bucket.sizes() == [p.numel() for p in bucket.parameters()]
    assert all(ours is given_one for ours, given_one in zip(bucket.parameters(), bucket.params))


@settings(deadline=None)
@given(shapes=shapes)
def test_what_is_written_into_a_gradient_is_in_the_buffer_and_the_other_way_round(shapes):
    bucket = bucket_of(shapes)
    for i, gradient in enumerate(bucket.gradients()):
        gradient.fill_(float(i))
    expected = torch.cat([torch.full((size,), float(i)) for i, size in enumerate(bucket.sizes())])
    assert torch.equal(bucket.buffer(), expected)
    bucket.buffer().fill_(7.0)
    assert all((gradient == 7.0).all() for gradient in bucket.gradients())


def test_setting_the_buffer_reaches_views_that_were_taken_before():
    bucket = bucket_of([(2,), (2, 1)])
    flat, gradients = bucket.buffer(), bucket.gradients()
    bucket.set_buffer(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    assert bucket.buffer() is flat
    assert [g.tolist() for g in gradients] == [[5.0, 6.0], [[7.0], [8.0]]]


@pytest.mark.parametrize("size", [1, 5])  # one element would be broadcast
def test_a_buffer_of_another_size_is_refused(size):
    with pytest.raises(RuntimeError):
        bucket_of([(2,), (2,)]).set_buffer(torch.zeros(size))


@pytest.mark.parametrize(("position", "last"), [(0, False), (3, True)])
def test_it_knows_its_place_in_the_step(position, last):
    bucket = bucket_of([(1,)], position=position, last=last)
    assert (bucket.index(), bucket.is_last()) == (position, last)


def test_the_list_of_parameters_is_the_callers_own():
    bucket = bucket_of([(1,), (2,)])
    bucket.parameters().clear()
    assert len(bucket.parameters()) == 2


def test_a_bucket_is_frozen():
    with pytest.raises(FrozenInstanceError):
        bucket_of([(1,)]).flat = torch.zeros(1)


def test_torchs_own_hook_runs_on_it():
    """The fp16 hook reads and answers with the buffer alone; one process, so the average is the gradient itself."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    class Alone:
        def size(self):
            return 1

    bucket = bucket_of([(3,)])

    def all_reduce(tensor, **kwargs):
        class Work:
            def get_future(self):
                future = torch.futures.Future()
                future.set_result([tensor])
                return future

        return Work()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", all_reduce)
        averaged = fp16_compress_hook(Alone(), bucket).wait()
    assert torch.equal(averaged, torch.tensor([0.0, 1.0, 2.0]))
