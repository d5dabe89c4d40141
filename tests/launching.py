"""Start the recipe as a user does: `deepspeed recipes/train_rec.py …` in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "train_rec.py"


def command(processes: int, *arguments: str, program: Path = RECIPE) -> list[str]:
    """The launch as a command line, on a port of its own."""
    launcher = Path(sys.executable).parent / "deepspeed"
    return [
        str(launcher),
        *("--num_accelerators", str(processes), "--master_port", str(free_port())),
        *(str(program), *arguments),
    ]


def free_port() -> int:
    """On this machine, now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """What a shell inside the virtual environment has: the launcher looks for ``python`` on the path."""
    own = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    source = str(ROOT / "plugin")
    return {**own, "PATH": path, "PYTHONPATH": source, "WANDB_MODE": "offline"}


def launch(
    processes: int, *arguments: str, timeout: float = 240.0, program: Path = RECIPE
) -> subprocess.CompletedProcess[str]:
    """Run the recipe, or another program, to its end; output and errors come back together."""
    return subprocess.run(
        command(processes, *arguments, program=program),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


def losses(output_dir: Path) -> dict[int, float]:
    """Loss by step, as the run wrote it; of a step that was done twice, the later one."""
    lines = (output_dir / "losses.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def write_config(path: Path, **changes: Any) -> Path:
    """A small DeepSpeed config, with ``changes`` at the top level."""
    config = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}},
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {"total_num_steps": 200, "warmup_num_steps": 4, "cos_min_ratio": 0.05},
        },
        "zero_allow_untested_optimizer": True,
        "recparallel": {"stages": 2},
        **changes,
    }
    path.write_text(json.dumps(config))
    return path


def write_small_log(folder: Path) -> Path:
    """A synthetic log that trains in seconds."""
    from recparallel.data.synthetic import write_synthetic

    folder.mkdir(parents=True, exist_ok=True)
    write_synthetic(folder, seed=3, num_users=150, num_items=60, min_events=8, max_events=16)
    return folder
