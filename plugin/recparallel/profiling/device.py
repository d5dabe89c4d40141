"""What a rank runs on, in words, and how much memory is left there."""

import platform
from pathlib import Path

import torch


def describe_device(device: torch.device | str = "cpu") -> str:
    """The device's name, with the threads of a CPU; the same text means the same kind of device."""
    device = torch.device(device)
    if device.type == "cpu":
        return f"{_processor()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def free_bytes(device: torch.device | str = "cpu") -> int | None:
    """Memory that is free on an accelerator; None on a CPU, whose memory the ranks of a machine share."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()  # what the allocator keeps is free for the training
    free, _ = torch.cuda.mem_get_info(device)
    return free


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
