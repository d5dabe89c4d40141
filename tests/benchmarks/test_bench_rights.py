"""Both versions of control groups on a made-up tree, and what is said where rights are missing."""

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.cluster import Cluster, missing_rights, rights
from benchmarks.cluster.cpu import CgroupsV1, CgroupsV2, find_cgroups, quota_and_period
from benchmarks.clusters import CLUSTERS
from benchmarks.errors import RightsError
from benchmarks.rank import read_usage


def test_version_2_limits_by_cpu_max(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("memory")
    groups = CgroupsV2(tmp_path)
    groups.create("g")
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    groups.set_limit("g", 0.5)
    assert (tmp_path / "g" / "cpu.max").read_text() == "3000 6000"
    assert groups.limit("g") == 0.5
    groups.set_limit("g", None)
    assert groups.limit("g") is None
    (tmp_path / "g" / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 3\n")
    assert read_usage(groups.usage_file("g")) == 1.5


def test_version_1_limits_by_quota_and_period(tmp_path: Path) -> None:
    for controller in ("cpu", "cpuacct"):
        (tmp_path / controller).mkdir()
    groups = CgroupsV1(tmp_path / "cpu", tmp_path / "cpuacct")
    groups.create("g")
    groups.set_limit("g", 0.25)
    assert groups.limit("g") == 0.25
    (tmp_path / "cpuacct" / "g" / "cpuacct.usage").write_text("2500000000\n")
    assert read_usage(groups.usage_file("g")) == 2.5
    assert [file.parent.parent.name for file in groups.members("g")] == ["cpu", "cpuacct"]


def test_a_small_share_has_a_longer_period_because_the_kernel_takes_no_quota_below_a_millisecond() -> None:
    assert quota_and_period(0.5) == (3_000, 6_000)
    assert quota_and_period(0.25) == (2_000, 8_000)
    assert quota_and_period(0.01) == (1_000, 100_000)
    assert quota_and_period(None) == (None, 6_000)


def test_the_version_that_holds_the_cpu_controller_is_found(tmp_path: Path) -> None:
    unified, joint = tmp_path / "unified", tmp_path / "cpu,cpuacct"
    unified.mkdir()
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"cgroup2 {unified} cgroup2 rw 0 0\ncgroup {joint} cgroup rw,cpu,cpuacct 0 0\nproc /proc proc rw 0 0\n"
    )
    (unified / "cgroup.controllers").write_text("hugetlb\n")
    assert find_cgroups(mounts) == CgroupsV1(joint, joint)
    (unified / "cgroup.controllers").write_text("cpu memory\n")
    assert find_cgroups(mounts) == CgroupsV2(unified)
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert find_cgroups(mounts) is None


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = [line for line in missing_rights() if "`tc`" in line]
    assert len(found) == 1
    assert "apt-get install iproute2" in found[0]


def test_missing_capabilities_and_groups_are_named_and_local_processes_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "_effective_capabilities", lambda: 0)
    monkeypatch.setattr(rights, "find_cgroups", lambda: None)
    with pytest.raises(RightsError) as caught:
        Cluster(CLUSTERS["flat"])
    for words in ("CAP_NET_ADMIN", "CAP_SYS_ADMIN", "`cpu`", "--local", "emulated: false"):
        assert words in str(caught.value)


def test_the_command_line_says_it_in_two_lines_and_not_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rights, "_effective_capabilities", lambda: 0)
    assert main(["selfcheck", "--quick"]) == 2
    assert "CAP_NET_ADMIN" in capsys.readouterr().err
    assert main(["selfchek"]) == 2
    assert "Did you mean 'selfcheck'" in capsys.readouterr().err
    assert main(["selfcheck", "--cluster", "flatt"]) == 2
    assert "Did you mean 'flat'" in capsys.readouterr().err
