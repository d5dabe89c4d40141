"""How busy the machine is with anything else: what spoils a measurement, and is reported beside it."""

import os
import time
from pathlib import Path


class BackgroundMeter:
    """Measures the cores that were busy with anything but the ranks, from its making until :meth:`read`."""

    def __init__(self) -> None:
        self._busy = _busy_seconds()
        self._started = time.monotonic()

    def read(self, *, own_seconds: float) -> float:
        """Busy cores on average, without the ranks' own ``own_seconds`` of CPU time. Time stolen by other machines counts."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return max(0.0, (_busy_seconds() - self._busy - own_seconds) / elapsed)


def _busy_seconds() -> float:
    """CPU seconds of the whole machine since boot, not counting idle time."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
