"""Cluster descriptions: what is read, and what is refused in which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import Change, ClusterSpec, Override, load_cluster
from benchmarks.clusters import CLUSTERS, get_cluster
from recparallel.errors import ConfigError, UnknownNameError

cores = st.none() | st.floats(0.01, 16)
megabits = st.none() | st.floats(0.1, 10_000)


@st.composite
def descriptions(draw: st.DrawFn) -> dict[str, Any]:
    nodes, ranks = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    node, step = st.integers(0, nodes - 1), st.integers(0, 100)
    limits = [
        st.fixed_dictionaries({"at_step": step, "node": node, "cpu": cores}),
        st.fixed_dictionaries({"at_step": step, "node": node, "link_mbit": megabits}),
        st.fixed_dictionaries({"at_step": step, "kill_rank": st.integers(0, nodes * ranks - 1)}),
    ]
    override = st.fixed_dictionaries({}, optional={"cpu": cores, "link_mbit": megabits})
    return {
        "name": draw(st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)),
        "nodes": nodes,
        "ranks_per_node": ranks,
        "cpu": draw(cores),
        "link_mbit": draw(megabits),
        "threads": draw(st.integers(1, 4)),
        "overrides": draw(st.dictionaries(node, override, max_size=3)),
        "changes": draw(st.lists(st.one_of(limits), max_size=3)),
    }


@given(descriptions())
def test_yaml_and_python_give_the_same_cluster(content: dict[str, Any]) -> None:
    spec = ClusterSpec.parse(content)
    again = ClusterSpec.parse(yaml.safe_load(yaml.safe_dump(spec.to_dict())))
    assert again == spec
    assert [again.limits(node) for node in range(spec.nodes)] == [spec.limits(node) for node in range(spec.nodes)]


@given(descriptions())
def test_every_rank_is_on_one_node(content: dict[str, Any]) -> None:
    spec = ClusterSpec.parse(content)
    assert [rank for node in range(spec.nodes) for rank in spec.ranks_of(node)] == list(range(spec.world_size))
    assert all(rank in spec.ranks_of(spec.node_of(rank)) for rank in range(spec.world_size))


def test_an_override_keeps_what_it_does_not_say_and_none_lifts_the_limit() -> None:
    spec = ClusterSpec(
        name="c", nodes=3, cpu=0.5, link_mbit=200, overrides={1: Override(cpu=0.25), 2: Override(link_mbit=None)}
    )
    assert (spec.limits(0).cpu, spec.limits(0).link_mbit) == (0.5, 200)
    assert (spec.limits(1).cpu, spec.limits(1).link_mbit) == (0.25, 200)
    assert (spec.limits(2).cpu, spec.limits(2).link_mbit) == (0.5, None)
    assert spec.total_cores == 1.25


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": 0}, ["`nodes`", "0", "greater than or equal to 1"]),
        ({"cpu": -1}, ["`cpu`", "-1", "0.01"]),
        ({"cpu": "half"}, ["`cpu`", "'half'"]),
        ({"cpu": True}, ["`cpu`", "True"]),
        ({"link_mbit": float("nan")}, ["`link_mbit`", "nan"]),
        ({"link_mbits": 5}, ["`link_mbits`", "unknown", "link_mbit", "Did you mean 'link_mbit'"]),
        ({"overrides": {7: {"cpu": 1}}}, ["`overrides`", "no node 7", "0 to 1"]),
        ({"overrides": {0: {"gpu": 1}}}, ["overrides.0.gpu", "allowed are cpu, link_mbit"]),
        ({"changes": [{"at_step": 1, "node": 4, "cpu": 1}]}, ["changes.0", "no node 4", "0 to 1"]),
        ({"changes": [{"at_step": 1, "kill_rank": 4}]}, ["changes.0.kill_rank", "no rank 4", "0 to 1"]),
        ({"changes": [{"at_step": 1, "node": 0}]}, ["changes.0", "`cpu` or `link_mbit`"]),
        ({"changes": [{"at_step": 1, "kill_rank": 0, "node": 1}]}, ["changes.0", "kill_rank", "stands alone"]),
        ({"name": "Über"}, ["`name`", "Über"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ClusterSpec.parse({"name": "c", "nodes": 2, **change}, where="here.yaml")
    assert all(word in str(caught.value) for word in ["here.yaml", *words]), str(caught.value)


def test_a_file_is_read_and_its_path_is_in_the_message(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("name: mine\nnodes: 2\nchanges:\n  - {at_step: 3, node: 1, link_mbit: null}\n")
    bad.write_text("- 1\n")
    assert get_cluster(str(good)).changes == (Change(at_step=3, node=1, link_mbit=None),)
    with pytest.raises(ConfigError, match=r"bad\.yaml.*list.*mapping"):
        load_cluster(bad)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_cluster(tmp_path / "none.yaml")


def test_the_named_clusters_are_those_that_results_speak_of() -> None:
    assert set(CLUSTERS) == {"flat", "two_tier", "mixed", "fast", "narrow", "eight"}
    assert CLUSTERS["two_tier"].world_size == 4
    assert CLUSTERS["fast"].limits(0).link_mbit is None
    assert CLUSTERS["mixed"].limits(2).cpu == 0.25
    assert CLUSTERS["mixed"].limits(3).link_mbit == 50
    assert all(spec.total_cores is not None and spec.total_cores <= 2 for spec in CLUSTERS.values())
    with pytest.raises(UnknownNameError, match="Did you mean 'two_tier'"):
        get_cluster("two_teir")


def test_changes_can_be_replaced() -> None:
    spec = CLUSTERS["flat"].with_changes(Change(at_step=1, node=0, cpu=0.1))
    assert str(spec.changes[0]) == "node 0: 0.1 core a rank"
    with pytest.raises(ValueError, match="no node 9"):
        CLUSTERS["flat"].with_changes(Change(at_step=1, node=9, cpu=0.1))
