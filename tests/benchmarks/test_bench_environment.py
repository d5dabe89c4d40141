"""What a rank finds in its environment, and what is recorded of the machine."""

import os
from pathlib import Path

from benchmarks.cluster import ClusterSpec, RankPlace
from benchmarks.cluster.rank_environment import RankFiles, rank_environment
from benchmarks.environment import capture_environment


def _environment(rank: int, *, usage: Path | None = None, **base: str) -> dict[str, str]:
    spec = ClusterSpec(name="c", nodes=2, ranks_per_node=3, threads=2, overrides={1: {"cpu": 0.25}})
    place = RankPlace(rank, rank % 3, rank // 3, 6, f"10.77.0.{rank // 3 + 1}", "10.77.0.1", 29500, "eth0")
    files = RankFiles(Path("/p"), Path(f"/r{rank}"), usage)
    return rank_environment(spec, place, files, owner="rpbench-1-1-0", base=base, extra={"EXTRA": "yes"})


def test_torch_and_deepspeed_find_the_numbers_of_a_rank_on_the_second_node() -> None:
    found = _environment(4)
    expected = {
        "RANK": "4",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "LOCAL_SIZE": "3",
        "CROSS_RANK": "1",
        "CROSS_SIZE": "2",
        "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "2",
        "EXTRA": "yes",
    }
    assert expected.items() <= found.items()


def test_a_rank_knows_its_cores_where_the_limit_holds() -> None:
    assert _environment(4)["BENCH_CORES"] == ""
    assert _environment(4, usage=Path("/u"))["BENCH_CORES"] == "0.25"
    assert _environment(0, usage=Path("/u"))["BENCH_CORES"] == ""  # node 0 has no limit


def test_threads_and_master_are_equal_on_all_ranks() -> None:
    same = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BENCH_PROGRESS")
    assert len({tuple(_environment(rank)[key] for key in same) for rank in range(6)}) == 1


def test_what_a_launcher_left_does_not_reach_the_ranks() -> None:
    found = _environment(0, TORCHELASTIC_RUN_ID="x", OMPI_COMM_WORLD_RANK="3", RANK="9", PATH="/bin")
    assert found["RANK"] == "0"
    assert found["PATH"] == "/bin"
    assert not [key for key in found if key.startswith(("TORCHELASTIC_", "OMPI_"))]


def test_the_record_names_the_machine_but_no_host_and_no_place() -> None:
    record = capture_environment(f"python /secret/place/run.py --json {os.getcwd()}/x.json", emulated=True)
    text = record.model_dump_json()
    assert record.command == "python run.py --json x.json"
    assert record.cores >= 1
    assert "python" in record.versions
    assert os.uname().nodename not in [record.machine, record.system]
    assert os.getcwd() not in text
