"""Say so when DeepSpeed is about to wait for a compiler that is gone.

Its first start compiles an operator through ``torch.utils.cpp_extension``, which guards the build with a lock file. A
process that is killed meanwhile leaves the file, and every later start waits for it without a word.
"""

import logging
import os
import time
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0
"""Longer than the operator takes to compile on a slow machine."""


def warn_about_build_lock() -> list[Path]:
    """Warn of locks older than :data:`PATIENCE_SECONDS`; returns them."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    old = [lock for lock in root.glob("**/deepspeed_*/lock") if time.time() - lock.stat().st_mtime > PATIENCE_SECONDS]
    for lock in old:
        logger.warning(
            "%s is %.0f s old: an earlier start was killed while it compiled. If nothing compiles now, delete this file; "
            "otherwise this start waits for it for ever.",
            lock,
            time.time() - lock.stat().st_mtime,
        )
    return old
