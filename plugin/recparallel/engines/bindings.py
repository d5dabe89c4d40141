"""Put attributes on one object and take them off again."""

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Bindings:
    """Attributes set on instances, with what was there before.

    Example:
        >>> class Engine:
        ...     def step(self): return "theirs"
        >>> engine, bindings = Engine(), Bindings()
        >>> bindings.bind(engine, "step", lambda: "ours")
        >>> engine.step()
        'ours'
        >>> bindings.remove()
        >>> engine.step(), vars(engine)
        ('theirs', {})
    """

    def __init__(self) -> None:
        self._before: list[Callable[[], None]] = []

    def bind(self, owner: Any, name: str, value: Any) -> None:
        """Set ``owner.name`` to ``value`` until :meth:`remove`."""
        before = owner.__dict__.get(name, _ABSENT)

        def restore() -> None:
            if before is _ABSENT:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before

        self._before.append(restore)
        owner.__dict__[name] = value

    def on_remove(self, function: Callable[[], None]) -> None:
        """Call ``function`` at :meth:`remove` too, for what is more than an attribute."""
        self._before.append(function)

    def remove(self) -> None:
        """Undo every binding, the latest first. A second call does nothing."""
        while self._before:
            self._before.pop()()
