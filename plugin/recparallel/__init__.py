"""Hybrid parallelism for LLM-based recommenders, on DeepSpeed and Megatron.

The usual way in::

    import recparallel

    engine, optimizer, loader, scheduler = recparallel.initialize(model=model, config="ds_config.json",
    training_data=data)

or, for an engine that someone else made::

    handle = recparallel.attach(engine, config="ds_config.json")

Attributes are loaded when they are first used: importing this package imports neither DeepSpeed nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from recparallel._version import __version__

if TYPE_CHECKING:
    from recparallel.engines.deepspeed import attach, initialize
    from recparallel.integrations.hf_trainer import RecParallelCallback
    from recparallel.models.recommender import Recommender, build_recommender
    from recparallel.plan import ParallelPlan, Partition, Profile

_HOMES = {
    "initialize": "recparallel.engines.deepspeed",
    "attach": "recparallel.engines.deepspeed",
    "RecParallelCallback": "recparallel.integrations.hf_trainer",
    "Recommender": "recparallel.models.recommender",
    "build_recommender": "recparallel.models.recommender",
    "ParallelPlan": "recparallel.plan",
    "Partition": "recparallel.plan",
    "Profile": "recparallel.plan",
}

__all__ = [
    "ParallelPlan",
    "Partition",
    "Profile",
    "RecParallelCallback",
    "Recommender",
    "__version__",
    "attach",
    "build_recommender",
    "initialize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recparallel' has no attribute {name!r}; it offers {sorted(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
