"""A checkpoint is there as a whole or not at all, whenever the process dies."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest

from recparallel.checkpointing import commit as module
from recparallel.checkpointing.commit import POINTER, begin, commit, latest, write_synced
from recparallel.errors import CheckpointError

SAVE = """
    import os, sys
    from pathlib import Path
    from recparallel.checkpointing import commit as module

    folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
    calls = 0

    def dying(original):
        def call(*arguments, **options):
            global calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), 9)
            return original(*arguments, **options)
        return call

    for name in ("open", "fsync", "replace", "mkdir", "rename", "rmdir", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    for step in (1, 2, 3):
        partial = module.begin(folder, f"step_{step}")
        module.write_synced(partial / "content", str(step).encode())
        module.commit(partial)
    print(calls)
"""


def content(folder):
    return (latest(folder) / "content").read_text()


def written(folder, name, text):
    partial = begin(folder, name)
    write_synced(partial / "content", text.encode())
    return partial


def run(folder, fatal):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SAVE), str(folder), str(fatal)], capture_output=True, text=True
    )


def test_what_was_committed_is_the_latest(tmp_path):
    assert commit(written(tmp_path, "step_1", "one")) == tmp_path / "step_1"
    assert latest(tmp_path) == tmp_path / "step_1"
    commit(written(tmp_path, "step_2", "two"))
    assert content(tmp_path) == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == [POINTER, "step_1", "step_2"]


def test_until_then_the_one_before_is(tmp_path):
    commit(written(tmp_path, "step_1", "one"))
    written(tmp_path, "step_2", "half")
    assert content(tmp_path) == "one"


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    (written(tmp_path, "step_7", "half") / "more").mkdir()
    commit(written(tmp_path, "step_8", "eight"))
    assert not list(tmp_path.glob("step_7*"))


def test_a_folder_that_nothing_points_at_is_replaced(tmp_path):
    (tmp_path / "step_2").mkdir()
    (tmp_path / "step_2" / "stale").touch()
    commit(written(tmp_path, "step_2", "fresh"))
    assert content(tmp_path) == "fresh"
    assert not (tmp_path / "step_2" / "stale").exists()


def test_the_latest_is_never_written_again(tmp_path):
    commit(written(tmp_path, "step_1", "one"))
    with pytest.raises(CheckpointError, match="step_1 is the latest checkpoint already"):
        begin(tmp_path, "step_1")
    assert content(tmp_path) == "one"


def test_a_folder_without_checkpoints_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint \(no file 'latest'\)"):
        latest(tmp_path)
    (tmp_path / POINTER).write_text("step_9")
    with pytest.raises(CheckpointError, match=r"names .*step_9, which does not exist"):
        latest(tmp_path)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch, name):
    commit(written(tmp_path, "step_1", "one"))

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, name, full)
        with pytest.raises(OSError, match="No space left"):
            commit(written(tmp_path, "step_2", "two"))
    assert content(tmp_path) == "one"
    commit(written(tmp_path, "step_2", "two"))
    assert content(tmp_path) == "two"


def test_killed_at_any_call_the_latest_is_whole(tmp_path):
    """Every sync, rename, removal and new folder of three saves in turn, in a process that is killed there. A file that is half
    written when it dies was not synced yet."""
    whole = run(tmp_path / "whole", 0)
    calls = int(whole.stdout)
    assert calls > 20
    seen = set()
    for fatal in range(1, calls + 1):
        folder = tmp_path / str(fatal)
        killed = run(folder, fatal)
        assert killed.returncode == -9, killed.stderr
        if (folder / POINTER).exists():
            seen.add(content(folder))
            assert latest(folder).name == f"step_{content(folder)}"
        # The next start goes on from there.
        commit(written(folder, "step_9", "nine"))
        assert content(folder) == "nine"
    assert seen == {"1", "2", "3"}
