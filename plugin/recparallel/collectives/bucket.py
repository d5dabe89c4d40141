"""A gradient bucket that offers what ``torch.distributed.GradBucket`` offers, so that DDP hooks run in other
engines."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Bucket:
    """A flat gradient and the parameters it belongs to. Method names are torch's.

    Args:
        flat: the gradients of all parameters, one after the other, shape (N,).
        params: the parameters, in the same order.
        names: their global names.
        position: number of the bucket within the step.
        last: the step has no bucket behind this one.
    """

    flat: Tensor
    params: tuple[Tensor, ...]
    names: tuple[str, ...]
    position: int
    last: bool

    def buffer(self) -> Tensor:
        """The flat gradient (N,); a hook may write into it."""
        return self.flat

    def set_buffer(self, tensor: Tensor) -> None:
        """Replace the content of the buffer; N must stay the same."""
        self.flat.copy_(tensor.view_as(self.flat))  # copy_ alone would broadcast a smaller one

    def index(self) -> int:
        return self.position

    def is_last(self) -> bool:
        return self.last

    def parameters(self) -> list[Tensor]:
        return list(self.params)

    def sizes(self) -> list[int]:
        """Number of elements of each parameter."""
        return [p.numel() for p in self.params]

    def gradients(self) -> list[Tensor]:
        """Views of the buffer in the shapes of the parameters."""
        return [part.view(p.shape) for part, p in zip(self.flat.split(self.sizes()), self.params)]
