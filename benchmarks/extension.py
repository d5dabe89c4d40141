"""DeepSpeed compiles a small extension on first use: better once, on whole cores, than by the ranks of a cluster."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

_BUILD = (
    "from deepspeed.accelerator import get_accelerator\n"
    "get_accelerator().create_op_builder('ShareMemCommBuilder').load(verbose=False)"
)


def extension_environment() -> dict[str, str]:
    """Where the extension of this Python is kept. Pythons that share torch's usual folder compile over one another."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    return {"TORCH_EXTENSIONS_DIR": str(cache / "recparallel" / "extensions" / own)}


def remove_stale_lock() -> None:
    """A rank that was stopped while it loaded the extension leaves a lock, for which the next ones would wait for ever."""
    for lock in Path(extension_environment()["TORCH_EXTENSIONS_DIR"]).glob("*/lock"):
        lock.unlink(missing_ok=True)


def compile_extension() -> None:
    """Compile it, or do nothing if that was done. Where it fails, the ranks will say why."""
    remove_stale_lock()
    environment = {**os.environ, **extension_environment()}
    subprocess.run([sys.executable, "-c", _BUILD], env=environment, capture_output=True, check=False)
