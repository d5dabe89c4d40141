"""DiLoCo: many local steps, then one outer step by Nesterov momentum (Douillard et al., 2023).

With ``fragments``, layers are exchanged in turns, and with ``overlap`` behind further local steps (Streaming DiLoCo: Douillard et
al., 2025). A quantized exchange is ``recparallel.data_parallel.compression``.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from recparallel.data_parallel.mode import Lockstep, Rounds, check_number
from recparallel.errors import ConfigError


class DiLoCo(Lockstep):
    """Outer Nesterov over the mean progress of each round.

    Args:
        local_steps: of a round.
        outer_learning_rate: of the outer optimizer.
        outer_momentum: of the outer optimizer; in [0, 1).
        fragments: layers are dealt into so many, and one of them is exchanged every ``local_steps / fragments`` steps.
        overlap: steps behind which an exchange is hidden.

    Raises:
        ConfigError: a number is out of range, or an exchange would end behind the next one of its fragment.
    """

    name = "diloco"

    def __init__(
        self,
        *,
        local_steps: int = 50,
        outer_learning_rate: float = 0.7,
        outer_momentum: float = 0.9,
        fragments: int = 1,
        overlap: int = 0,
    ) -> None:
        self._rounds = Rounds(local_steps, where="diloco: local_steps")
        check_number(outer_learning_rate, "diloco: outer_learning_rate", least=0)
        check_number(outer_momentum, "diloco: outer_momentum", least=0, below=1)
        check_number(fragments, "diloco: fragments", least=1, whole=True)
        check_number(overlap, "diloco: overlap", least=0, whole=True)
        if fragments > self._rounds.shortest or overlap > self._rounds.shortest:
            raise ConfigError(
                f"diloco: fragments and overlap can be at most local_steps ({self._rounds.shortest}), got {fragments} and {overlap}"
            )
        self._learning_rate, self._momentum = outer_learning_rate, outer_momentum
        self.fragments, self.delay = fragments, overlap

    def leaving(self, step: int) -> list[int]:
        apart = self._rounds.shortest // self.fragments
        return [part for part in range(self.fragments) if self._rounds.ends(step, shift=part * apart)]

    def outer_optimizer(self, common: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(common, lr=self._learning_rate, momentum=self._momentum, nesterov=self._momentum > 0)
