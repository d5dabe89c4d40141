"""Gradient hooks in a Hugging Face Trainer script that is otherwise left as it is.

A callback is given the bare model. What averages its gradients is the DeepSpeed engine, or the DistributedDataParallel, that wraps
it: it is found among the objects that are alive.
"""

import gc
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from recparallel.config import parse_config, read_deepspeed_config
from recparallel.data_parallel.configured import check_codec
from recparallel.errors import HookError

logger = logging.getLogger(__name__)


class RecParallelCallback(TrainerCallback):
    """``Trainer(..., callbacks=[RecParallelCallback(config)])``: the gradient exchange that the config names, with its state in the
    Trainer's checkpoints.

    Args:
        config: a DeepSpeed JSON with a ``"recparallel"`` section, of which ``compression`` is read, or the path of one.

    Raises:
        ConfigError: the config is wrong.

    Example:
        >>> callback = RecParallelCallback({"recparallel": {"compression": {"codec": "int8"}}})
        >>> callback.handle is None
        True
    """

    def __init__(self, config: str | Path | dict[str, Any]) -> None:
        self._config = read_deepspeed_config(config)
        check_codec(parse_config(self._config).compression)
        self.handle: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the hook on what wraps the model, and read its state where the Trainer goes on from a checkpoint.

        Raises:
            HookError: nothing that is alive wraps the model, or it cannot take a hook.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            logger.info("recparallel: there is one process, nothing is exchanged")
            return
        from recparallel.engines.deepspeed import attach

        engine = _engine_of(kwargs["model"])
        if args.fp16 and isinstance(engine, DistributedDataParallel):
            raise HookError("fp16=True under DistributedDataParallel: residuals would mix loss scales; use bf16=True")
        self.handle = attach(engine, self._config)
        if state.global_step:
            self._load(self._file(args, state))

    def _load(self, path: Path) -> None:
        """What was kept by a run of as many processes: on all ranks or, said once, on none."""
        world = dist.get_world_size()
        stored = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
        there: list[Any] = [None] * world
        dist.all_gather_object(there, stored.get("world_size"))
        if there == [world] * world:
            self.handle.load_state_dict(stored["hook"])
        elif dist.get_rank() == 0:
            logger.warning(
                "recparallel: %s was not written by %d processes; what had not been sent by then is lost", path, world
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write this rank's state beside the Trainer's checkpoint."""
        if self.handle is None:
            return
        path = self._file(args, state)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        torch.save({"world_size": dist.get_world_size(), "hook": self.handle.state_dict()}, fresh)
        fresh.replace(path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hook off again."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    @staticmethod
    def _file(args: TrainingArguments, state: TrainerState) -> Path:
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        return folder / f"recparallel_rank_{dist.get_rank()}.pt"


def _engine_of(model: torch.nn.Module) -> Any:
    """What averages the gradients of a bare model.

    Raises:
        HookError: there is no such thing.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    gc.collect()  # what is dead already must not be found
    # A proxy among the objects may raise whatever it likes when it is asked for its class.
    wraps = (DeepSpeedEngine, DistributedDataParallel)
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), wraps) and thing.module is model]
    if len(found) != 1:
        what = "no DeepSpeed engine and no DistributedDataParallel that is alive wraps" if not found else "several wrap"
        raise HookError(
            f"{what} this {type(model).__name__}; put the hook on by recparallel.attach(engine, config), for example with "
            "trainer.deepspeed"
        )
    return found[0]
