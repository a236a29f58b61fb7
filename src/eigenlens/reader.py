"""What a reader is: it turns images into named attribute scores, says how far each may be off, and may abstain."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import UserError
from .registry import Registry

READERS = Registry(
    "reader",
    {
        "faces": "eigenlens.readers.faces:Faces",
        "pixels": "eigenlens.readers.pixels:Pixels",
        "toonfaces": "eigenlens.readers.toonfaces:ToonFaces",
    },
)
"""Name -> the reader. One of your own: `READERS.table["mine"] = "package.module:Name"`."""

EXTRACTORS = Registry(
    "feature extractor",
    {
        "clip": "eigenlens.readers.local:Clip",
        "dlib_face": "eigenlens.readers.identity:DlibFace",
        "efficientnet_lite0": "eigenlens.readers.efficientnet:EfficientNetLite0",
        "inception_fid": "eigenlens.readers.local:InceptionFid",
        "lpips_alex": "eigenlens.readers.lpips:LpipsAlex",
        "lpips_vgg": "eigenlens.readers.lpips:LpipsVgg",
    },
)
"""Name -> features without names of their own, for distances between images; weights come from installed packages."""

Kind = Literal["number", "truth"]
Group = Literal["geometry", "colour", "part", "other"]
GROUPS: tuple[Group, ...] = ("geometry", "colour", "part", "other")


@dataclass(frozen=True)
class Attribute:
    """What one score of a reader means."""

    name: str
    """The name, such as `rotation` or `beard`, or `hair_style=bun` for one of several categories."""
    kind: Kind = "number"
    """`number`, in `unit`; or `truth`, a probability from 0 to 1."""
    group: Group = "other"
    """What sort of change it is: where things are, what colour they have, which parts there are."""
    unit: str = ""
    """Of a number."""
    error: float = math.nan
    """Standard error of a score on images that the reader was made for: root mean square error of a number, share of
    wrong answers of a truth; 0 where the score is a definition; NaN where it is not known."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a reader says of some images."""

    scores: Tensor
    """[batch, attributes]."""
    error: Tensor
    """How far each score may be off, one standard deviation, [batch, attributes]; NaN where not known."""
    certain: Tensor
    """Whether the reader stands by each score, bool [batch, attributes]; where false it abstains: the picture is none
    that it knows, its judges disagree, or the attribute does not apply (the style of a beard where there is none)."""


@runtime_checkable
class Reader(Protocol):
    """A way to read attributes off images. `describe` and `read` are optional; `open_reader` adds what is missing."""

    name: ClassVar[str]
    """The name in the table."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the scores, in order."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores [batch, attributes] for images [batch, channels, height, width] in [-1, 1]."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """Features of images for distances between them or between sets of them."""

    name: ClassVar[str]
    """The name in the table; metrics that use it carry it in theirs."""
    package: ClassVar[str]
    """The package whose weights it reads; a user installs it."""
    licence: ClassVar[str]
    """The licence of those weights, as the package states it."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [batch, many] for images [batch, channels, height, width] in [-1, 1]."""
        ...


# --- what every reader can do -----------------------------------------------------------------------------------------


def open_reader(reader: str | Reader | Callable[[Tensor], Tensor], attributes: Sequence[str] = ()) -> Reader:
    """Return a reader given by its name, by `package.module:attribute`, or by the thing itself.

    Args:
        reader: a name of `READERS`; a path of your own reader, or of a function; a reader; or a function of images
            [batch, channels, height, width] in [-1, 1] that gives scores [batch] or [batch, attributes].
        attributes: names of a function's scores; by default those in its own `attributes`, or else `score-0`,
            `score-1`, ...

    Raises:
        UserError: on an unknown name, or a path that leads nowhere; when it reads, where a function gives another
            number of scores than it has names.

    Example:
        >>> brightness = open_reader(lambda images: images.mean((1, 2, 3)), ["brightness"])
        >>> brightness(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 1])
    """
    if isinstance(reader, str) and ":" in reader:
        module, _, attribute = reader.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: names such as ..x and ""
            raise UserError(f"no reader at {reader!r}: {error}; write it as package.module:name") from error
        return open_reader(found, attributes)
    if isinstance(reader, str):
        return READERS[reader]()
    if isinstance(reader, type):
        return reader()
    if isinstance(reader, Reader):
        return reader
    if not callable(reader):
        raise UserError(f"a {type(reader).__name__} came as a reader; give a name, a path or a function of images")
    return FunctionReader(reader, tuple(attributes or getattr(reader, "attributes", ())))


@dataclass(frozen=True)
class FunctionReader:
    """A function of images as a reader."""

    function: Callable[[Tensor], Tensor]
    """Images [batch, channels, height, width] in [-1, 1] -> scores [batch] or [batch, attributes]."""
    attributes: tuple[str, ...] = ()
    """Names of the scores; where none are given, one call on a grey picture counts them."""
    name: ClassVar[str] = "function"

    def __post_init__(self) -> None:
        if not self.attributes:
            count = self._scores(torch.zeros(1, 3, 64, 64)).shape[1]
            object.__setattr__(self, "attributes", tuple(f"score-{i}" for i in range(count)))

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores [batch, attributes].

        Raises:
            UserError: where the function gives another number of scores than there are names.
        """
        scores = self._scores(images)
        if scores.shape[1] != len(self.attributes):
            raise UserError(
                f"a function gave {scores.shape[1]} scores an image, and has {len(self.attributes)} names: "
                f"{', '.join(self.attributes)}; give one each"
            )
        return scores

    def _scores(self, images: Tensor) -> Tensor:
        scores = torch.as_tensor(self.function(images))  # functions of NumPy give arrays
        return scores.reshape(len(images), -1).float()


def describe(reader: Reader) -> tuple[Attribute, ...]:
    """Say what each score of a reader means; of one that does not say, all are numbers of unknown error."""
    if hasattr(reader, "describe"):
        return tuple(reader.describe())
    return tuple(Attribute(name) for name in reader.attributes)


@functools.lru_cache(maxsize=16)
def digest_of(reader: str) -> str:
    """Return a short digest of the weights of a reader given by name; empty where it has none, or does not say."""
    opened = open_reader(reader)
    return str(getattr(opened, "weights", ""))


def read(reader: Reader, images: Tensor) -> Reading:
    """Read images, with errors and abstentions; a reader that has no `read` of its own stands by every finite score."""
    if hasattr(reader, "read"):
        return reader.read(images)
    scores = reader(images)
    error = torch.tensor([each.error for each in describe(reader)]).to(scores).expand_as(scores)
    return Reading(scores, error, scores.isfinite())


def factor_of(attribute: str) -> str:
    """Return what an attribute is a value of: `hair_style` for `hair_style=bun`, else its own name."""
    return attribute.partition("=")[0]
