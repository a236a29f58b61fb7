"""What requests hold: shapes and bounds, which the OpenAPI page shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_IMAGES = 64

Source = Annotated[str, Field(min_length=1, max_length=1000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, le=2**31)]
Steps = Annotated[int, Field(ge=0, le=2000)]
Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
EditJson = Annotated[dict[str, Any], Field(description="An Edit, as `eigenlens edit --edit` reads it.")]


class Body(BaseModel):
    """What requests share: a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Problem(BaseModel):
    """What an error reply holds."""

    error: str
    unsupported: bool = False


class FrameBody(Body):
    """A picture of an Edit, and of the same done to its neighbours."""

    edit: EditJson
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 1
    columns: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    largest: Pixels = 1024
    final: bool = True


class StripBody(Body):
    """A strip of one direction across its limits, for the image of an Edit."""

    edit: EditJson
    directions: Source
    name: Name
    layers: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=3, le=33)] = 7
    largest: Pixels = 128


class CoordinatesBody(Body):
    """Where the image of an Edit stands along a set of directions."""

    edit: EditJson
    directions: Source


class EditBody(Body):
    """An Edit alone."""

    edit: EditJson


class ExportBody(Body):
    """A file to take along: the picture; the way there as a strip or a film; or one direction across its limits."""

    edit: EditJson
    kind: Literal["png", "strip", "gif", "webp", "mp4"] = "png"
    directions: Source | None = None
    name: Name | None = None
    n: Annotated[int, Field(ge=2, le=121)] = 9
    fps: Annotated[float, Field(ge=1, le=50)] = 20


class ChangeBody(Body):
    """Changes of a set of directions; the file stays, and a new one holds the result."""

    generator: Source
    source: Source
    rename: dict[Name, Name] = {}
    flip: Annotated[list[Name], Field(max_length=1000)] = []
    drop: Annotated[list[Name], Field(max_length=1000)] = []


class Piece(Body):
    """Some directions of a set; all where `names` is missing."""

    source: Source
    names: Annotated[list[Name], Field(max_length=1000)] | None = None


class PresetsBody(Body):
    """A set of components that published edits shall name."""

    generator: Source
    source: Source
    presets: Name


class JoinBody(Body):
    """Sets to be joined into one."""

    generator: Source
    pieces: Annotated[list[Piece], Field(min_length=1, max_length=50)]


class ComposeBody(Body):
    """An Edit whose moves shall become one direction."""

    edit: EditJson
    name: Name = "mix"


class SaveBody(Body):
    """A set to be saved under a name of its own."""

    generator: Source
    source: Source
    name: Annotated[str, Field(min_length=1, max_length=60)]
    force: bool = False


class TeachBody(Body):
    """Seeds whose images have more or less of what is meant."""

    edit: EditJson
    more: Annotated[list[Seed], Field(max_length=200)] = []
    less: Annotated[list[Seed], Field(max_length=200)] = []
    candidates: Annotated[list[Seed], Field(max_length=200)] = []
    name: Name = "taught"


class DiscoverBody(Body):
    """A method to be run."""

    generator: Source
    method: Name
    settings: dict[str, Any] = {}
    seed: Seed = 0
    measure: Literal["all", "effect", "none"] = "effect"


class MeasureBody(Body):
    """A set whose effects and limits shall be measured."""

    generator: Source
    source: Source


class NamesBody(Body):
    """A set whose directions shall be named by what a reader sees change."""

    generator: Source
    source: Source
    reader: Name = "pixels"


class ExplorerBody(Body):
    """A set that an explorer page shall show, and how its pictures are drawn."""

    edit: EditJson
    source: Source


class RegionBody(Body):
    """A box on an Edit's picture, in shares of its width and height, and what is sought there."""

    edit: EditJson
    box: tuple[Share, Share, Share, Share]
    n_directions: Annotated[int, Field(ge=1, le=32)] = 6
    layers: Annotated[str, Field(max_length=200)] = "all"


class SimilarityBody(Body):
    """Two sets to be compared."""

    generator: Source
    a: Source
    b: Source


class BreedBody(Body):
    """Two parents."""

    a: EditJson
    b: EditJson
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 8
    seed: Seed = 0
    mutation: Share = 0.15
