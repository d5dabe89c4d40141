"""Whether a training that goes on reads what it has read before: numbers of items and tokens mean nothing elsewhere."""

import json
from collections.abc import Mapping
from pathlib import Path

from recparallel.errors import DataError
from recparallel.training.arguments import RANK

FILE = "data.json"


def check_same_data(output_dir: Path, identity: Mapping[str, str], *, resume: bool) -> None:
    """Write down what is read, or compare it with what was.

    Args:
        output_dir: of the training.
        identity: what decides the numbers, by name: fingerprints, settings.
        resume: the training goes on.

    Raises:
        DataError: it would go on with other data; the message has both.
    """
    path = output_dir / FILE
    if resume and path.is_file():
        before = json.loads(path.read_text())
        changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if changed:
            told = "; ".join(f"{name} was {before.get(name)!r} and is {identity.get(name)!r}" for name in changed)
            raise DataError(f"--resume: {path} says that this training has read other data: {told}")
    elif RANK == 0:
        output_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(identity), indent=1) + "\n")
