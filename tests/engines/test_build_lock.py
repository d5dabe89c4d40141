"""A lock that a killed compiler left is named before DeepSpeed waits for it."""

import logging
import os
import time

from recparallel.engines.build_lock import warn_about_build_lock


def test_an_old_lock_is_named_and_a_fresh_one_is_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    old, fresh = (tmp_path / f"deepspeed_{name}" / "lock" for name in ("shm_comm", "other"))
    for lock in (old, fresh):
        lock.parent.mkdir()
        lock.touch()
    os.utime(old, (time.time() - 1000,) * 2)
    with caplog.at_level(logging.WARNING):
        assert warn_about_build_lock() == [old]
    assert str(old) in caplog.text
    assert "delete this file" in caplog.text
