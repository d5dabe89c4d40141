"""Send next time what was left out this time."""

import torch
from torch import Tensor

from recparallel.compression.base import Codec, Payload

Key = tuple[str, ...]
"""Global names of the parameters in a bucket, in order."""


class ErrorFeedback:
    """Error feedback around any codec.

    1. ``p = g + e``: the gradient plus what earlier payloads left out.
    2. Send ``C(p)``; keep ``e = p - decode(C(p))``.

    What is not finite is sent and not kept.

    So ``sent + residual == input`` in every step (Karimireddy et al., "Error feedback fixes SignSGD and other
    gradient compression schemes", ICML 2019, Algorithm 1). Residuals are kept by bucket and stored by parameter name:
    when buckets are cut anew, each parameter finds its residual again. They are kept in fp32, also for gradients of
    lower precision.

    Example:
        >>> from recparallel.compression.top_k import TopK
        >>> feedback = ErrorFeedback(TopK(ratio=0.5))
        >>> payload = feedback.encode(torch.tensor([1.0, 2.0]), ("w",), [2])
        >>> feedback.state_dict()["w"].tolist()
        [1.0, 0.0]
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._residuals: dict[Key, Tensor] = {}
        self._sizes: dict[Key, list[int]] = {}

    def encode(self, flat_N: Tensor, names: Key, sizes: list[int]) -> Payload:
        """Encode ``flat_N`` (N,) plus its residual, in fp32, and keep the new residual.

        Args:
            names: the parameters that the bucket holds, in order.
            sizes: their numbers of elements; they add up to N.
        """
        if names not in self._residuals:
            self._residuals[names] = self._regroup(names, sizes, flat_N)
            self._sizes[names] = sizes
        corrected_N = self._residuals[names].add_(flat_N)
        payload = self.codec.encode(corrected_N)
        sent_N = torch.zeros_like(corrected_N)
        self.codec.add_decoded(payload, sent_N)
        corrected_N.sub_(sent_N)  # in place: the stored tensor now is the new residual
        corrected_N.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # one bad gradient must not come back for ever
        return payload

    def _regroup(self, names: Key, sizes: list[int], like_N: Tensor) -> Tensor:
        """The residual of a new bucket, gathered from the buckets that held its parameters before. What else these
        held waits, by name, for the buckets to come."""
        residual_N = torch.zeros_like(like_N, dtype=torch.promote_types(like_N.dtype, torch.float32))
        known = self.state_dict()
        for name, part in zip(names, residual_N.split(sizes)):
            if name in known:
                part.copy_(known[name])
        for key in [key for key in self._residuals if set(key) & set(names)]:
            del self._residuals[key]
            self._sizes.pop(key, None)
            self._residuals.update({(name,): known[name].clone() for name in key if name not in names})
        return residual_N

    def state_dict(self) -> dict[str, Tensor]:
        """Residuals by global parameter name, each flat."""
        return {
            name: part
            for key, flat in self._residuals.items()
            for name, part in zip(key, flat.split(self._sizes.get(key, [flat.numel()])))
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take residuals by name; they are grouped into buckets when each bucket is first seen."""
        self._residuals = {(name,): tensor.clone() for name, tensor in state.items()}
        self._sizes = {}
