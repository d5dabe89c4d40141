"""Pure tensor codecs, one a file, and the error feedback that wraps any of them. Nothing here communicates."""

from recparallel.compression.base import Codec, Payload

__all__ = ["Codec", "Payload"]
