"""Checks of codecs' options: each says what was given, what is allowed, and which key it was."""

from typing import Any

from recparallel.errors import ConfigError


def check_ratio(codec: str, ratio: Any) -> None:
    """Raises:
    ConfigError: ``ratio`` is no number, or not in (0, 1].
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0.0 < ratio <= 1.0:
        raise ConfigError(f"{codec}: ratio must be a number in (0, 1], got {ratio!r} (recparallel.compression.ratio)")


def check_integer(
    codec: str, key: str, value: Any, *, least: int, most: int | None = None, multiple_of: int = 1
) -> None:
    """Raises:
    ConfigError: ``value`` is no integer, out of range, or no multiple.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least or value % multiple_of:
        allowed = f"of at least {least}" + (f" and a multiple of {multiple_of}" if multiple_of > 1 else "")
    elif most is not None and value > most:
        allowed = f"of at most {most}"
    else:
        return
    raise ConfigError(f"{codec}: {key} must be an integer {allowed}, got {value!r} (recparallel.compression.{key})")
