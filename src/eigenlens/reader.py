"""What a reader is: it turns images into named attribute scores."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from .registry import Registry

READERS = Registry("reader", {"pixels": "eigenlens.readers.pixels:Pixels"})
"""Name -> the reader."""


@runtime_checkable
class Reader(Protocol):
    """A way to read attributes off images."""

    name: ClassVar[str]
    """The name in the table."""
    attributes: tuple[str, ...]
    """Names of the scores, in order."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores [batch, attributes] for images [batch, channels, height, width] in [-1, 1]."""
        ...
