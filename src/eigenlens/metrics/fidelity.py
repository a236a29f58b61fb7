"""What edits cost: how far images move, whether they still look like the generator's own, whether the person stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import runtime
from ..directions import Directions
from ..distance import squared_mmd
from ..effect import image_distance, image_features, sample_distance, sample_for
from ..errors import UserError
from ..generator import Generator
from ..metric import Score, make_score
from ..reader import EXTRACTORS
from .features import collect, ends, in_sigma, plain, spans

SUBSETS = 20
"""Random subsets over which kernel distances are averaged."""
SUBSET = 256
"""Rows of a subset."""


# --- image distance ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditDistance:
    """How far edits of ±s move images: the mean `image_distance`, as a share of that between two samples.

    `details` has each direction's share. It judges nothing by itself: it is what other scores are to be compared at.
    """

    n: int = 64
    """Codes."""
    strength: float = 2.0
    """How far each way, in σ; less where limits are nearer."""
    name: ClassVar[str] = "edit_distance_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Edit, render and compare."""
        directions = in_sigma(generator, directions)
        unit = sample_distance(generator, directions, n=64, seed=seed)
        shares = [each / max(unit, 1e-12) for each in _distances(self, generator, directions, image_distance, seed)]
        found = {"share": shares, "sample_distance": unit, "names": list(directions.names)}
        value = sum(shares) / max(len(shares), 1)
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **plain(found))


@dataclass(frozen=True)
class EditLpips:
    """How far edits of ±s move images by LPIPS (VGG-16): the mean over directions; each stands in `details`."""

    n: int = 32
    """Codes."""
    strength: float = 2.0
    """How far each way, in σ; less where limits are nearer."""
    name: ClassVar[str] = "edit_lpips_vgg_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Edit, render and compare."""
        extract = EXTRACTORS["lpips_vgg"]()
        directions = in_sigma(generator, directions)
        distance = lambda a, b: (extract(a) - extract(b)).square().sum(1)  # noqa: E731
        found = _distances(self, generator, directions, distance, seed)
        value = sum(found) / max(len(found), 1)
        details = plain({"lpips": found, "names": list(directions.names)})
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **details)


def _distances(
    metric: EditDistance | EditLpips,
    generator: Generator,
    directions: Directions,
    distance: Callable[[Tensor, Tensor], Tensor],
    seed: int,
) -> list[float]:
    """Return the mean distance from a code's image to its images at ±s, for each direction."""
    codes = sample_for(generator, directions, metric.n, seed=seed)
    found = []
    for k, reach in enumerate(runtime.progress(spans(directions, metric.strength), what="distance")):
        total = 0.0
        for start, stop in runtime.batches(len(codes), max(1, generator.batch_size // 3)):
            below, here, above = ends(generator, codes[start:stop], directions, k, (-reach, 0.0, reach)).unbind(1)
            with torch.inference_mode():
                total += float((distance(here, below) + distance(here, above)).double().sum())
        found.append(total / (2 * len(codes)))
    return found


# --- kernel distance --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditKid:
    """How far the images of edits lie from the generator's own: kernel distance in features of pixels, times 1000.

    Half of the edits go +s, half -s; they are compared with unedited samples of other codes. The value is the mean over
    directions, less the distance between two sets of unedited samples, which is 0 but for chance. Features are
    `effect.image_features`, standardised over unedited samples: they see colours, layout and detail, not meaning.

    Source:
        Bińkowski et al., Demystifying MMD GANs, ICLR 2018, section 4: the unbiased squared MMD with the kernel
        (x·y / d + 1)³. Deviations: 20 subsets of 256 rows (100 of 1,000 there); the features, which the name carries.
    """

    n: int = 512
    """Edits of each direction, and unedited samples."""
    strength: float = 2.0
    """How far each way, in σ; less where limits are nearer."""
    strengths: tuple[float, ...] | None = None
    """How far each way for each direction, in σ, where they shall differ."""
    name: ClassVar[str] = "edit_kid_pixels_512_v1"

    def extractor(self) -> Callable[[Tensor], Tensor]:
        """Return the function that describes images."""
        return image_features

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Edit, render, describe and compare.

        Raises:
            UserError: on fewer than 8 samples.
        """
        if self.n < 8:
            raise UserError(f"n {self.n} came; a kernel distance needs 8 or more")
        directions, extract = in_sigma(generator, directions), self.extractor()
        own = sample_for(generator, directions, 2 * self.n, seed=seed)
        features = collect(generator, own, extract, what="own").double()
        mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
        first, second = ((features - mean) / scale).split(self.n)
        null, null_error = kernel_distance(first, second, seed=seed)
        codes = sample_for(generator, directions, self.n, seed=seed, start=2 * self.n)
        values, errors = [], []
        for k, reach in enumerate(runtime.progress(spans(directions, self.strength, self.strengths), what="kid")):
            edited = torch.cat(
                [
                    _edited(generator, codes[0::2], directions, k, reach, extract),
                    _edited(generator, codes[1::2], directions, k, -reach, extract),
                ]
            )
            value, error = kernel_distance((edited.double() - mean) / scale, first, seed=seed)
            values.append(1000 * (value - null))
            errors.append(1000 * error)
        found = {"kid": values, "standard_error": errors, "null": 1000 * null, "null_error": 1000 * null_error}
        found["names"] = list(directions.names)
        value = sum(values) / max(len(values), 1)
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **plain(found))


@dataclass(frozen=True)
class EditKidEfficientNet(EditKid):
    """The same in features of EfficientNet-Lite0, which see what ImageNet's classes need."""

    name: ClassVar[str] = "edit_kid_efficientnet_512_v1"

    def extractor(self) -> Callable[[Tensor], Tensor]:
        """Return the function that describes images."""
        return EXTRACTORS["efficientnet_lite0"]()


def _edited(
    generator: Generator, codes: Any, directions: Directions, k: int, reach: float, extract: Callable[[Tensor], Tensor]
) -> Tensor:
    pieces = []
    for start, stop in runtime.batches(len(codes), generator.batch_size):
        images = ends(generator, codes[start:stop], directions, k, (reach,))[:, 0]
        with torch.inference_mode():
            pieces.append(extract(images))
    return torch.cat(pieces)


def kernel_distance(
    a: Tensor, b: Tensor, *, seed: int = 0, subsets: int = SUBSETS, subset: int = SUBSET
) -> tuple[float, float]:
    """Return the kernel distance of two sets of features, mean over random subsets, and its standard error over them.

    Args:
        a, b: [n, dim] and [m, dim], float64.
        seed: fixes the subsets.
        subsets, subset: how many, and rows of each, at most half of a set.
    """
    random = runtime.generator_for(seed, "metrics/kid")
    size = min(subset, len(a) // 2, len(b) // 2)
    values = []
    for _ in range(subsets):
        some = [torch.from_numpy(random.choice(len(each), size, replace=False)) for each in (a, b)]
        values.append(squared_mmd(a[some[0]], b[some[1]]))
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


# --- identity ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """How much of the person edits of ±s leave: the mean cosine of dlib's descriptors before and after.

    Images in which no face is found before or after are left out; `details` counts them. Different people have
    cosines of about 0.8, so `details` also has the mean cosine between samples.
    """

    n: int = 32
    """Codes."""
    strength: float = 2.0
    """How far each way, in σ; less where limits are nearer."""
    name: ClassVar[str] = "identity_dlib_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Edit, render, describe and compare."""
        extract = EXTRACTORS["dlib_face"]()
        directions = in_sigma(generator, directions)
        codes = sample_for(generator, directions, self.n, seed=seed)
        here = collect(generator, codes, extract, what="faces")
        if not here.isfinite().all(1).any():
            raise UserError(f"no face was found in {self.n} samples of {generator.name}; identity is for faces")
        values, lost = [], []
        for k, reach in enumerate(runtime.progress(spans(directions, self.strength), what="identity")):
            cosines = torch.cat(
                [
                    torch.nn.functional.cosine_similarity(
                        here, _edited(generator, codes, directions, k, side * reach, extract)
                    )
                    for side in (-1, 1)
                ]
            )
            known = cosines.isfinite()
            values.append(float(cosines[known].mean()) if known.any() else float("nan"))
            lost.append(float(1 - known.double().mean()))
        value = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        strangers = torch.nn.functional.cosine_similarity(here, here.roll(1, 0))
        found = {"cosine": values, "no_face": lost, "strangers": float(strangers.nanmean())}
        found["names"] = list(directions.names)
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **plain(found))
