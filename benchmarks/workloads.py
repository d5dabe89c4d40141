"""What is trained: four workloads as data, and their models through :func:`recparallel.build_recommender`.

Every side of a benchmark trains the same layers with the same loss on the same global batches.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recparallel.errors import UnknownNameError

if TYPE_CHECKING:
    from recparallel.models.recommender import Recommender

DATA = "RECPARALLEL_DATA"
"""Environment variable: the folder that holds real datasets."""

_DEFAULT_DATA = Path("..") / "shared" / "data"


def data_folder() -> Path:
    """Where logs are that the repository does not contain."""
    return Path(os.environ.get(DATA, _DEFAULT_DATA))


@dataclass(frozen=True)
class Workload:
    """A model, its loss and its batches.

    Attributes:
        name: what results call it.
        blocks, width, ffn, heads: of the Llama trunk.
        num_items: rows of the item table without the padding row.
        tied: the head scores against the embedding table.
        loss: name of a registered loss.
        loss_options: keyword arguments of that loss.
        length: positions of a sequence.
        global_batch: sequences of a step, over all ranks.
        file: file of real histories under the data folder, or ``None`` for seeded synthetic ones of full length.
        grouped: synthetic histories stay among neighbouring items, some of them popular, so that there is something to learn;
            otherwise every item is as likely.
    """

    name: str
    blocks: int
    width: int
    ffn: int
    heads: int
    num_items: int
    tied: bool
    length: int
    loss: str = "cross_entropy"
    loss_options: dict[str, Any] = field(default_factory=dict)
    global_batch: int = 64
    file: str | None = None
    grouped: bool = False

    @property
    def architecture(self) -> dict[str, Any]:
        """The trunk as a Hugging Face config with ``model_type``."""
        return {
            "model_type": "llama",
            "vocab_size": 8,  # the item table takes the token table's place
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.length,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }

    def recommender(self) -> "Recommender":
        """Layers and loss, without weights yet."""
        from recparallel import build_recommender

        return build_recommender(
            self.architecture, num_items=self.num_items, tied=self.tied, loss=self.loss, loss_options=self.loss_options
        )

    def data_file(self) -> Path | None:
        """The file of real histories, whether it is there or not; ``None`` for a synthetic workload."""
        return None if self.file is None else data_folder() / self.file

    def missing(self) -> str | None:
        """Why this workload cannot run here, or ``None``."""
        path = self.data_file()
        if path is None or path.is_file():
            return None
        return f"{self.file} is not in the folder {data_folder()}; set {DATA}"


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("head", blocks=8, width=256, ffn=768, heads=4, num_items=20_000, tied=False, length=100),
        Workload(
            "catalogue",
            blocks=4,
            width=128,
            ffn=384,
            heads=4,
            num_items=200_000,
            tied=True,
            length=50,
            loss="sampled_softmax",
            loss_options={"num_negatives": 512},
        ),
        Workload("deep", blocks=24, width=192, ffn=576, heads=4, num_items=4_000, tied=False, length=50),
        Workload(
            "ragged",
            blocks=4,
            width=128,
            ffn=384,
            heads=4,
            num_items=3_706,
            tied=True,
            length=200,
            file="ml-1m/sequences.txt",
        ),
    )
}
"""``head``: a heavy untied head. ``catalogue``: a heavy table. ``deep``: many blocks. ``ragged``: real histories."""

LEARNABLE = {name: f"{name} grouped" for name in ("head", "catalogue")}
"""Names of the same workloads on histories that can be learned."""

WORKLOADS |= {
    learnable: replace(WORKLOADS[name], name=learnable, grouped=True) for name, learnable in LEARNABLE.items()
}


def get_workload(name: str) -> Workload:
    """The workload of this name.

    Raises:
        UnknownNameError: there is none; the message lists those that exist and the nearest.
    """
    if name not in WORKLOADS:
        raise UnknownNameError("workload", name, WORKLOADS, where="--workload")
    return WORKLOADS[name]
