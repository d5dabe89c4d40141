"""Linear layers that ranks share: by columns, each rank makes some of the outputs; by rows, each adds its part to all."""

from torch import Tensor, nn

from recparallel.tensor_parallel.exchange import sum_over_ranks
from recparallel.tensor_parallel.ranks import TensorRanks
from recparallel.tensor_parallel.sequence import sum_to_positions
from recparallel.tensor_parallel.split import Split, hold


def is_transposed(linear: nn.Module) -> bool:
    """Weights lie as (inputs, outputs), as in GPT-2's ``Conv1D``, and not as in ``nn.Linear``."""
    return not isinstance(linear, nn.Linear)


def num_outputs(linear: nn.Module) -> int:
    """Outputs of a linear layer."""
    return int(linear.weight.shape[1 if is_transposed(linear) else 0])  # type: ignore[index, union-attr]


def num_inputs(linear: nn.Module) -> int:
    """Inputs of a linear layer."""
    return int(linear.weight.shape[0 if is_transposed(linear) else 1])  # type: ignore[index, union-attr]


def hold_columns(linear: nn.Module, pieces: tuple[tuple[int, int], ...], *, counts: bool, ranks: TensorRanks) -> None:
    """Let a linear layer make only the outputs in ``pieces``."""
    outputs = num_outputs(linear)
    hold(linear, "weight", Split(1 if is_transposed(linear) else 0, outputs, pieces, counts, ranks))
    hold(linear, "bias", Split(0, outputs, pieces, counts, ranks))
    setattr(linear, "nf" if is_transposed(linear) else "out_features", num_outputs(linear))


class RowLinear(nn.Module):
    """The layer's outputs from this rank's part of the inputs, summed over the ranks; the bias is added once. Where ranks share
    positions, each gets those of its own.

    Args:
        linear: the whole layer.
        ranks: that share it; their number divides the number of inputs.
    """

    def __init__(self, linear: nn.Module, ranks: TensorRanks) -> None:
        super().__init__()
        self.ranks, self.transposed = ranks, is_transposed(linear)
        self.weight, self.bias = linear.weight, linear.bias
        inputs = num_inputs(linear)
        hold(self, "weight", Split(0 if self.transposed else 1, inputs, (ranks.share(inputs),), True, ranks))

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight if self.transposed else self.weight.T
        add_up = sum_to_positions if self.ranks.sequence else sum_over_ranks
        outputs = add_up(inputs @ weight, self.ranks)  # type: ignore[operator]
        return outputs if self.bias is None else outputs + self.bias  # type: ignore[operator]
