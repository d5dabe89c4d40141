"""A small process beside each run that cleans up after it if it dies, even by SIGKILL.

It holds the reading end of a pipe whose writing end only the run holds: when the run ends, for whatever reason, reading
ends.
"""

import os
import signal
import subprocess
import sys

from benchmarks.cluster.cleanup import remove


class Watchdog:
    """Starts the process, and ends it when the run has cleaned up by itself."""

    def __init__(self, name: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cluster.watchdog", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the run, not for this one
        )

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def close(self) -> None:
        """Let it end: it finds nothing left to remove."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=30)


def main(name: str) -> None:
    """Wait until the run ends, then remove what is left of it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    remove(name)


if __name__ == "__main__":
    main(sys.argv[1])
