"""A checkpoint that lost or changed a file is refused, and the file is named."""

import json

import pytest

from recparallel.checkpointing.manifest import FILE, Manifest, describe_files, list_files, read_manifest, verify_files
from recparallel.errors import CheckpointError
from recparallel.plan import ParallelPlan, Partition


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "tensors").mkdir()
    for name in ("tensors/a", "tensors/b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    plan = ParallelPlan(partition=Partition(bounds=(0, 3), method="uniform"), micro_batch=1, num_micro_batches=1)
    files = describe_files(tmp_path, list_files(tmp_path))
    manifest = Manifest(step=3, plan=plan, trunk={"model_type": "llama"}, num_rows=5, items=True, files=files)
    (tmp_path / FILE).write_text(manifest.model_dump_json())
    return tmp_path


def test_it_is_read_as_it_was_written(checkpoint):
    manifest = read_manifest(checkpoint)
    assert (manifest.step, manifest.num_rows, manifest.plan.partition.bounds) == (3, 5, (0, 3))
    assert list(manifest.files) == ["c", "tensors/a", "tensors/b"]
    verify_files(manifest, checkpoint)


def test_the_manifest_does_not_describe_itself(checkpoint):
    assert list_files(checkpoint) == ["c", "tensors/a", "tensors/b"]


def change_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "tensors/b is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "tensors/b is damaged: it has 8,999 bytes, 9,000 were"),
        (change_a_bit, "tensors/b is damaged: its checksum"),
    ],
    ids=["missing", "short", "one bit"],
)
def test_a_harmed_file_is_named(checkpoint, harm, said):
    harm(checkpoint / "tensors" / "b")
    manifest = read_manifest(checkpoint)
    verify_files(manifest, checkpoint, share=1, shares=3)  # another rank's share
    with pytest.raises(CheckpointError, match=said):
        verify_files(manifest, checkpoint, share=2, shares=3)


def test_a_harmed_manifest_is_refused(checkpoint):
    path = checkpoint / FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(CheckpointError, match="says format 99, this version reads 1"):
        read_manifest(checkpoint)
    path.write_text(json.dumps({**content, "step": "three"}))
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: step"):
        read_manifest(checkpoint)
    path.write_text(path.read_text()[:40])
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: JSONDecodeError"):
        read_manifest(checkpoint)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: UnicodeDecodeError"):
        read_manifest(checkpoint)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: TypeError"):
        read_manifest(checkpoint)
    path.unlink()
    with pytest.raises(
        CheckpointError, match=r"manifest\.json: No such file or directory: the checkpoint is incomplete"
    ):
        read_manifest(checkpoint)
    (checkpoint / "plan.json").touch()
    with pytest.raises(CheckpointError, match="is of an older format, which this version does not read"):
        read_manifest(checkpoint)
