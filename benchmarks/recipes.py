"""Start a recipe as users do."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.errors import RunError
from benchmarks.output import console


def train(recipe: str, arguments: Mapping[str, str], *, processes: int) -> None:
    """Run ``recipes/RECIPE`` under the launcher, to its end, anew.

    Raises:
        RunError: it failed; its words are shown.
    """
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(processes)]
    options = [part for key, value in arguments.items() for part in (f"--{key}", value)]
    command = [*launcher, f"recipes/{recipe}", *options, "--overwrite_output_dir"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stdout[-2000:], done.stderr[-4000:], markup=False)
        raise RunError(f"{recipe} ended with {done.returncode} in {arguments['output_dir']}")
