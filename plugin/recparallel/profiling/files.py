"""Profiles as JSON files: written by ``recparallel profile`` or by hand."""

from pathlib import Path

from pydantic import ValidationError

from recparallel.errors import PartitionError
from recparallel.plan import Profile

_MOST_PROBLEMS = 5


def read_profile(path: str | Path) -> Profile:
    """A profile from its JSON file.

    Raises:
        PartitionError: the file is missing or is no profile; the message says which field, and what is wrong.
    """
    try:
        return Profile.model_validate_json(Path(path).read_text())
    except OSError as error:
        raise PartitionError(f"profile {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PartitionError(f"profile {path}: not a text file (a profile is JSON, not compressed)") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg'].removeprefix('Value error, ')} (given {str(p['input'])[:60]!r})"
            for p in error.errors()[:_MOST_PROBLEMS]
        )
        raise PartitionError(f"profile {path}: {problems}") from error
