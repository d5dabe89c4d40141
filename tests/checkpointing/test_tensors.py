"""Tensors are on disk as they were given, and a save that is killed leaves the one before it."""

import subprocess
import sys
import textwrap

import pytest
import torch

from recparallel.checkpointing.tensors import Stored, read_tensors, stored_tensors, write_tensors
from recparallel.errors import CheckpointError

TENSORS = {
    "weight/a.b": torch.randn(5, 3),
    "weight/c": torch.randn(4).to(torch.bfloat16),
    "optimizer/c/step": torch.tensor(7.0),
    "optimizer/c/count": torch.tensor(9),
}


def test_every_bit_and_dtype_comes_back(tmp_path):
    write_tensors(TENSORS, tmp_path)
    stored = stored_tensors(tmp_path)
    assert stored == {name: Stored(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}
    found = read_tensors(list(TENSORS), tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_one_tensor_can_be_read_alone(tmp_path):
    write_tensors(TENSORS, tmp_path)
    assert torch.equal(read_tensors(["weight/c"], tmp_path)["weight/c"], TENSORS["weight/c"])
    assert read_tensors([], tmp_path) == {}


def test_what_is_not_there_is_named(tmp_path):
    write_tensors(TENSORS, tmp_path)
    with pytest.raises(CheckpointError, match="holds no tensor 'weight/d'"):
        read_tensors(["weight/d"], tmp_path)
    (tmp_path / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp"):
        read_tensors(["weight/c"], tmp_path)
    (tmp_path / ".metadata").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read"):
        stored_tensors(tmp_path)


KILLED = """
    import os, random, sys, time, warnings
    from pathlib import Path
    import torch
    from recparallel.checkpointing.commit import POINTER, begin, commit, latest, write_synced
    from recparallel.checkpointing.manifest import FILE, Manifest, describe_files, list_files, read_manifest, verify_files
    from recparallel.checkpointing.tensors import read_tensors, write_tensors
    from recparallel.plan import ParallelPlan, Partition

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    plan = ParallelPlan(partition=Partition(bounds=(0, 3), method="uniform"), micro_batch=1, num_micro_batches=1)

    def save(step):
        partial = begin(folder, f"step_{step}")
        write_tensors({f"w{i}": torch.full((1000, 100), float(step)) for i in range(8)}, partial / "tensors")
        files = describe_files(partial, list_files(partial))
        manifest = Manifest(step=step, plan=plan, trunk={}, num_rows=1, items=True, files=files)
        write_synced(partial / FILE, manifest.model_dump_json().encode())
        commit(partial)

    def check():
        source = latest(folder)
        manifest = read_manifest(source)
        verify_files(manifest, source)
        found = read_tensors([f"w{i}" for i in range(8)], source / "tensors")
        assert all((tensor == manifest.step).all() for tensor in found.values())
        return manifest.step

    start = time.monotonic()
    save(0)
    once = time.monotonic() - start
    generator, steps = random.Random(5), []
    while len(steps) < 20 or (steps[-1] < 10 and len(steps) < 100):  # on a slow disk fewer saves go through between kills
        child = os.fork()
        if child == 0:
            for step in range(check() + 1, 10**6):
                save(step)
        time.sleep(generator.uniform(0.2, 4) * once)
        os.kill(child, 9)
        os.waitpid(child, 0)
        steps.append(check())
    assert steps == sorted(steps)
    print(steps[-1])
"""


def test_killed_at_twenty_random_moments_the_latest_checkpoint_loads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10  # many saves went through, so the kills hit different moments
