"""Where caches lie: profiles, prepared logs."""

import os
from pathlib import Path

FOLDER = "RECPARALLEL_CACHE"
"""Environment variable: where caches lie, instead of ``~/.cache/recparallel``."""


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cache, ``"profiles"`` or ``"data"``; it need not exist yet."""
    root = os.environ.get(FOLDER) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recparallel"
    return Path(root) / kind
