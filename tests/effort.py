"""How much a test does: a part of it every time, all of it in `make test-slow`."""

import os

_SHARE = float(os.environ.get("RECPARALLEL_EXAMPLES", "0.25"))


def examples(count: int) -> int:
    """Of ``count`` examples of a property, those that are tried now; at least 10."""
    return max(min(count, 10), round(_SHARE * count))
