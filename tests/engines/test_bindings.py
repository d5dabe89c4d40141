import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recparallel.engines.bindings import Bindings


class Engine:
    kind = "class"

    def __init__(self):
        self.count = 1

    def step(self):
        return "theirs"


def test_what_is_bound_comes_off_again():
    engine, other, bindings = Engine(), Engine(), Bindings()
    before = dict(vars(engine))
    bindings.bind(engine, "step", lambda: "ours")
    bindings.bind(engine, "count", 2)
    bindings.bind(engine, "kind", "own")
    assert (engine.step(), engine.count, engine.kind) == ("ours", 2, "own")
    assert (other.step(), other.count, other.kind, Engine.kind) == ("theirs", 1, "class", "class")
    bindings.remove()
    assert vars(engine) == before
    assert (engine.step(), engine.count, engine.kind) == ("theirs", 1, "class")


def test_what_is_more_than_an_attribute_is_undone_in_turn():
    engine, bindings, seen = Engine(), Bindings(), []
    bindings.bind(engine, "count", 2)
    bindings.on_remove(lambda: seen.append(engine.count))
    bindings.bind(engine, "count", 3)
    bindings.remove()
    bindings.remove()
    assert (seen, engine.count) == ([2], 1)


def test_a_second_removal_does_nothing():
    engine, bindings = Engine(), Bindings()
    bindings.bind(engine, "count", 2)
    bindings.remove()
    engine.count = 3
    bindings.remove()
    assert engine.count == 3


def test_bindings_of_several_objects_come_off_together():
    engine, optimizer, bindings = Engine(), Engine(), Bindings()
    bindings.bind(engine, "count", "engine")
    bindings.bind(optimizer, "count", "optimizer")
    bindings.remove()
    assert (engine.count, optimizer.count) == (1, 1)


def test_what_was_none_is_none_again():
    engine, bindings = Engine(), Bindings()
    engine.count = None
    bindings.bind(engine, "count", 2)
    bindings.remove()
    assert vars(engine) == {"count": None}


@settings(deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(["count", "step", "new"]), st.integers()), max_size=8))
def test_any_sequence_of_bindings_comes_off(changes):
    engine, bindings = Engine(), Bindings()
    before = dict(vars(engine))
    for name, value in changes:
        bindings.bind(engine, name, value)
        assert getattr(engine, name) == value
    bindings.remove()
    assert vars(engine) == before


def test_an_attribute_of_a_torch_module_can_be_bound():
    module, bindings = nn.Linear(2, 2), Bindings()
    before = dict(vars(module))
    bindings.bind(module, "forward", lambda x: "ours")
    assert module(None) == "ours"
    bindings.remove()
    assert vars(module) == before
    with pytest.raises(TypeError):
        module(None)
