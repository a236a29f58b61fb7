"""A direction from a few clicks: some images have more of it, some have less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import __version__
from .codes import Codes, Space
from .directions import Directions, Provenance, standard_deviation, unit_norm
from .errors import UserError
from .generator import Generator

POOL = 256
"""Images that tell what of a code is visible."""
LARGE_POOL = 64
"""The same where an image is larger than `SMALL` pixels."""
SMALL = 128
CELLS = 16
"""Rows and columns that images are pooled to."""
FLOOR = 0.02
"""Share of the prior that does not depend on visibility."""
NOISE = 0.3
"""Variance of a click, in units of the prior variance of what is clicked."""
SMOOTH = 0.1
"""Ridge of the regression of pixels on codes, in units of a coordinate's variance times the images."""


@dataclass(frozen=True, eq=False)
class Visible:
    """What of a generator's codes can be seen: a prior over what a person may mean.

    Whoever judges images judges what they show. Among all linear functions of the code that agree with the clicks, the
    likely one is therefore a function of the pixels; its prior covariance is P = BBᵀ, where B holds the regression of
    coarse pixels on codes, plus a little of the identity. With a dozen clicks in 152 dimensions this is the difference
    between a correlation of 0.4 and one of 0.9 with what was meant.
    """

    generator: Generator
    space: Space
    mean: Tensor
    """Mean code, [slots * dim]."""
    prior: Tensor
    """P, with mean diagonal 1, [slots * dim, slots * dim]."""
    n: int
    """Images that it rests on."""
    seed: int
    """Seed of their codes."""

    @classmethod
    def measure(cls, generator: Generator, *, n: int | None = None, seed: int = 0) -> Visible:
        """Render `n` images of `seed` and regress their pixels on their codes.

        Args:
            generator: any.
            n: images; by default 256, or 64 where they are larger than 128 px.
            seed: of the codes.
        """
        n = n or (POOL if generator.resolution <= SMALL else LARGE_POOL)
        label = "random" if generator.label_names else None
        codes = generator.sample(n, seed=seed, label=label)
        latents = _rows(codes)
        pixels = F.adaptive_avg_pool2d(generator.render(codes).clamp(-1, 1), CELLS).flatten(1).double()  # [n, pixels]
        centred, seen = latents - latents.mean(0), pixels - pixels.mean(0)
        # the dual form: there may be fewer images than coordinates
        gram = centred @ centred.T
        gram += SMOOTH * n * centred.var() * torch.eye(n, dtype=gram.dtype)
        slopes = centred.T @ torch.linalg.solve(gram, seen)  # B, [slots * dim, pixels]
        prior = slopes @ slopes.T
        prior /= prior.diagonal().mean().clamp(min=1e-30)
        prior += FLOOR * torch.eye(len(prior), dtype=prior.dtype)
        return cls(generator, codes.space, latents.mean(0), prior, n, seed)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What clicks taught, and what to ask next."""

    normal: Tensor
    """The learnt function of the code, [slots * dim]."""
    left_out: float
    """Share of the clicks that are predicted rightly from the others; NaN below two of each kind."""
    mean: Tensor
    """Predicted vote of each candidate, [candidates]."""
    deviation: Tensor
    """How unsure that is, [candidates]."""

    def most_telling(self, but: Sequence[int] = ()) -> int | None:
        """Return the candidate whose answer would tell most: the least sure side of the fence; `but` are left out."""
        doubt = self.mean.abs() / self.deviation.clamp(min=1e-12)
        for each in but:
            doubt[each] = torch.inf
        return None if not len(doubt) or bool(doubt.isinf().all()) else int(doubt.argmin())


def learn(visible: Visible, codes: Codes, votes: Sequence[float], *, candidates: Codes | None = None) -> Lesson:
    """Fit a linear function of the code to votes, by ridge regression with the prior of what is visible.

    Args:
        visible: of the codes' generator.
        codes: those that were judged, in its default space.
        votes: positive for more, negative for less; one each.
        candidates: codes to choose the next question among.

    Raises:
        UserError: unless there is a vote for each code, and one at least.

    Source:
        Rasmussen and Williams, Gaussian processes for machine learning, 2006, section 2.1 (the weight-space view).
    """
    if len(codes) != len(votes) or not len(votes):
        raise UserError(f"{len(votes)} votes came for {len(codes)} codes; give one each, and one at least")
    rows = _rows(codes) - visible.mean
    wanted = torch.tensor(list(votes), dtype=torch.float64)
    has_both = bool((wanted > 0).any()) and bool((wanted < 0).any())
    centre = float(wanted[wanted > 0].mean() + wanted[wanted < 0].mean()) / 2 if has_both else 0.0
    likely = rows @ visible.prior  # [n, d]
    gram = likely @ rows.T
    noise = NOISE * gram.diagonal().mean().clamp(min=1e-30)
    inverse = torch.linalg.inv(gram + noise * torch.eye(len(gram), dtype=gram.dtype))
    weights = inverse @ (wanted - centre)
    few = min(int((wanted > 0).sum()), int((wanted < 0).sum())) < 2
    errors = weights / inverse.diagonal()  # y - prediction from the others, in closed form
    right = ((wanted - centre - errors) * (wanted - centre) > 0).double().mean()
    mean = deviation = torch.empty(0, dtype=torch.float64)
    if candidates is not None:
        asked = _rows(candidates) - visible.mean
        cross = asked @ likely.T  # [m, n]
        mean = cross @ weights
        own = ((asked @ visible.prior) * asked).sum(1)
        deviation = (own - ((cross @ inverse) * cross).sum(1)).clamp(min=0).sqrt()
    return Lesson(likely.T @ weights, float("nan") if few else float(right), mean, deviation)


def as_directions(
    visible: Visible, lesson: Lesson, *, name: str = "taught", about: Mapping[str, Any] | None = None
) -> Directions:
    """Return what was learnt as a direction: the most likely change of code that raises the vote, C times the normal.

    Args:
        visible: what the lesson was learnt with.
        lesson: of votes of both kinds.
        name: of the direction.
        about: what was clicked, for provenance.

    Raises:
        UserError: where nothing was learnt.
    """
    space, generator = visible.space, visible.generator
    normal = lesson.normal.unflatten(0, (-1, space.dim))  # [slots, dim]
    vector = (normal @ space.covariance.double())[None].float()
    if not bool(vector.norm() > 0):
        raise UserError("nothing was learnt: the clicked images are all alike; click some that differ")
    vectors = unit_norm(vector)
    arguments = {"pool": visible.n, "pool_seed": visible.seed, **(about or {})}
    return Directions(
        vectors,
        space.broadcast_of or space.name,
        (name,),
        sigma=standard_deviation(vectors, space),
        fields={"left_out": torch.tensor([lesson.left_out], dtype=torch.float32)},
        provenance=Provenance(generator.identity(), "taught", arguments, visible.seed, __version__),
    )


def _rows(codes: Codes) -> Tensor:
    """Return latents as float64 rows, [batch, slots * dim]; where all slots of w+ hold the same w, that w."""
    latent = codes.latent.detach().cpu().double()
    if codes.space.broadcast_of and latent.shape[1] > 1:
        latent = latent.mean(1, keepdim=True)
    return latent.expand(-1, 1 if codes.space.broadcast_of else codes.space.slots, -1).flatten(1)
