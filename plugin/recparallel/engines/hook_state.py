"""What a handle on any engine offers for the gradient hook on it: its state."""

from typing import Any

from recparallel.data_parallel.hook import BoundHook
from recparallel.errors import HookError


class HookState:
    """A gradient hook on an engine.

    Attributes:
        hook: that averages the gradients; None where the engine's own exchange runs.
    """

    hook: BoundHook | None

    def state_dict(self) -> dict[str, Any]:
        """What this rank must store beside weights and optimizer: residuals and other state of the hook."""
        return {} if self.hook is None else {"hook": self.hook.name, "state": self.hook.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            HookError: the state belongs to another hook.
        """
        stored, own = state.get("hook"), None if self.hook is None else self.hook.name
        if stored != own:
            raise HookError(
                f"the checkpoint holds state of gradient hook {stored!r}, this engine runs {own!r}; attach the same hook"
            )
        if self.hook is not None:
            self.hook.load_state_dict(state["state"])

    def step_done(self, *, made: bool = True) -> None:
        """Tell that the optimizer's step is over, and whether it was made. DeepSpeed engines tell by themselves; with others it is
        needed only where a step is skipped although all gradients are finite."""
        if self.hook is not None:
            self.hook.step_done(made=made)
