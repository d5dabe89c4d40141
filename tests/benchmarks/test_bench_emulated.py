"""Real namespaces, limits and changes in mid-run, where the rights are there."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster import Change, Cluster, ClusterSpec
from benchmarks.cluster.cleanup import remains
from benchmarks.cluster.sites import EmulatedSite

pytestmark = pytest.mark.usefixtures("emulation")

PAIR = ClusterSpec(name="pair", nodes=2, ranks_per_node=1, cpu=0.4, link_mbit=80)

_SPIN = """
import time
from benchmarks import rank
def share():
    start, end = rank.read(), time.monotonic() + 0.8
    while time.monotonic() < end: pass
    used = rank.read() - start
    return used.cpu_seconds / used.seconds
shares = []
for step in range(3):
    rank.report_step(step)
    time.sleep(0.5)  # until the change has been made
    shares.append(share())
rank.write_report({'shares': shares})
"""

_STREAM = """
import os, socket, time
from benchmarks import rank
def receive(stream, seconds):
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end: count += len(stream.recv(1 << 16))
    return count * 8 / 1e6 / seconds
place = (os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))
if os.environ['RANK'] == '0':
    with socket.create_server(place) as server: stream = server.accept()[0]
    receive(stream, 0.5)
    fast = receive(stream, 0.8)
    rank.report_step(1)
    receive(stream, 1.5)  # until the change has been made and what was on its way has come
    rank.write_report({'rates': [fast, receive(stream, 1.0)]})
else:
    while True:
        try: stream = socket.create_connection(place); break
        except ConnectionRefusedError: time.sleep(0.05)
    try:
        while True: stream.sendall(bytes(1 << 16))
    except (ConnectionResetError, BrokenPipeError): pass
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    from benchmarks.cluster import missing_rights

    if missing := missing_rights():
        pytest.skip("; ".join(missing))
    with Cluster(PAIR) as made:
        yield made


def _site(cluster: Cluster) -> EmulatedSite:
    assert isinstance(cluster.site, EmulatedSite)
    return cluster.site


def test_a_limited_node_slows_down_in_mid_run_and_comes_back(cluster: Cluster) -> None:
    read_back: list[float | None] = []
    changes = [Change(at_step=1, node=0, cpu=0.1), Change(at_step=2, node=0, cpu=0.4)]
    result = cluster.run(
        lambda place: [sys.executable, "-c", _SPIN] if place.rank == 0 else ["true"], changes=changes, timeout=60
    ).check()
    before, slow, after = result.reports[0]["shares"]
    assert 0.2 <= before <= 0.8
    assert slow < before / 2
    assert after > slow * 2
    assert [change.applied for change in result.changes] == [True, True]
    read_back.append(_site(cluster).cpu_limit(0))
    assert read_back == [0.4]


def test_a_link_drops_in_mid_run_and_the_next_run_starts_as_described(cluster: Cluster) -> None:
    changes = [Change(at_step=1, node=1, link_mbit=8)]
    result = cluster.run([sys.executable, "-c", _STREAM], changes=changes, timeout=60).check()
    fast, slow = result.reports[0]["rates"]
    assert 40 <= fast <= 160
    assert slow <= 16
    assert _site(cluster).link_rates(1) == (8, 8)
    assert _site(cluster).link_rates(0) == (80, 80)
    sent = result.nodes[1].sent_bytes
    assert sent is not None
    assert sent > 2_000_000
    received = result.nodes[0].received_bytes
    assert received is not None
    assert received == pytest.approx(sent, rel=0.2)
    cluster.run(["true"], timeout=30).check()
    assert _site(cluster).link_rates(1) == (80, 80)


def test_ranks_of_one_node_talk_over_its_loopback_and_cpu_seconds_are_those_of_the_group() -> None:
    spec = ClusterSpec(name="tier", nodes=1, ranks_per_node=2, link_mbit=1)
    code = (
        "import os, socket, time\n"
        "from benchmarks import rank\n"
        "place = (os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))\n"
        "if os.environ['RANK'] == '0':\n"
        "    with socket.create_server(place) as server: stream = server.accept()[0]\n"
        "    while stream.recv(1 << 16): pass\n"
        "    rank.write_report({'loopback': rank.read().loopback_bytes})\n"
        "else:\n"
        "    while True:\n"
        "        try: stream = socket.create_connection(place); break\n"
        "        except ConnectionRefusedError: time.sleep(0.05)\n"
        "    stream.sendall(bytes(4_000_000))\n"
    )
    with Cluster(spec) as cluster:
        result = cluster.run([sys.executable, "-c", code], timeout=20).check()
    # At 1 Mbit/s this would take 32 s: the link's limit does not hold inside a node.
    assert result.wall_seconds < 16
    loopback, sent = result.nodes[0].loopback_bytes, result.nodes[0].sent_bytes
    assert loopback is not None
    assert loopback > 4_000_000
    assert sent is not None
    assert sent < 10_000
    assert result.reports[0]["loopback"] > 4_000_000
    assert all(rank.cpu_seconds > 0 for rank in result.ranks)
    assert not remains(cluster.name)


def test_a_rank_is_alone_with_its_network(cluster: Cluster) -> None:
    result = cluster.run(["sh", "-c", "cat /proc/net/dev; cat /proc/net/route"], timeout=30).check()
    text = result.ranks[0].log.read_text()
    assert "eth0" in text
    assert "00000000\t" not in text.split("Iface", 1)[1].split("Mask")[0]
    assert {line.split(":")[0].strip() for line in text.splitlines() if ":" in line} == {"lo", "eth0"}


def test_two_live_clusters_do_not_meet() -> None:
    with Cluster(PAIR) as one, Cluster(PAIR) as two:
        assert one.name != two.name
        assert one.run(["true"], timeout=30).ok
        assert two.run(["true"], timeout=30).ok
    assert not remains(one.name)
    assert not remains(two.name)


def test_an_exception_leaves_nothing() -> None:
    names = []

    def fail() -> None:
        with Cluster(PAIR) as cluster:
            names.append(cluster.name)
            assert remains(cluster.name)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not remains(names[0])


def test_an_error_while_it_is_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more links")

    cluster = Cluster(PAIR)
    monkeypatch.setattr(_site(cluster)._network, "set_rate", fail)
    with pytest.raises(RuntimeError, match="no more links"):
        cluster.__enter__()
    assert not remains(cluster.name)


def test_the_working_directory_and_the_path_of_logs_may_be_relative(tmp_path: Path, cluster: Cluster) -> None:
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        code = "from benchmarks import rank; rank.write_report({'ok': 1})"
        result = cluster.run([sys.executable, "-c", code], logs="logs", directory="/", timeout=30).check()
    finally:
        os.chdir(before)
    assert result.reports[1] == {"ok": 1}
