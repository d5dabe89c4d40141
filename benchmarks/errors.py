"""What can go wrong around a benchmark, apart from a wrong setting (:class:`recparallel.errors.ConfigError`)."""

from collections.abc import Sequence

from recparallel.errors import RecParallelError


class RightsError(RecParallelError, PermissionError):
    """This machine or user cannot emulate a cluster; the message says exactly what is missing.

    Args:
        missing: one sentence for each missing right or tool.
    """

    def __init__(self, missing: Sequence[str]) -> None:
        self.missing = tuple(missing)
        lines = "\n".join(f"  - {line}" for line in missing)
        super().__init__(
            f"cannot emulate a cluster here:\n{lines}\n"
            "Plain processes without limits need none of this: pass `local=True`, or `--local` on the command line; "
            "their results are marked `emulated: false`."
        )


class EmulationError(RecParallelError, RuntimeError):
    """A namespace, link or CPU group could not be made or changed, although the rights seemed to be there."""


class RunError(RecParallelError, RuntimeError):
    """A rank failed, was killed or did not end in time; the first rank to fail comes first in the message."""
