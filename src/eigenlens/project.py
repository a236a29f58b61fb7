"""From photos to Codes: optimisation through the generator, and what tells whether its result can be edited.

Codes are optimised whitened, in σ along the principal axes of their space: a step has the same size everywhere, and
the mean square of a code is its squared Mahalanobis distance, which the prior keeps small.

Source:
    Abdal, Qin, Wonka, Image2StyleGAN, ICCV 2019, for w+; Karras et al., Analyzing and Improving the Image Quality of
    StyleGAN, CVPR 2020, appendix D, for the schedule of the learning rate and the noise maps; Wulff and Torralba,
    Improving Inversion and Generation Diversity in StyleGAN using a Gaussianized Latent Space, 2020, for the prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import runtime
from .codes import Codes, Space, concatenate
from .distance import DISTANCES, pixel_distance, psnr, ssim
from .encoder import Encoder, find_encoder
from .errors import UserError, unknown_name
from .generator import Generator
from .images import from_uint8, grid
from .photo import Photo

STARTS = ("auto", "encoder", "samples", "mean")
TYPICAL_SAMPLES = 1024  # codes, of which the far ones say how far codes lie at all
NEAR = 0.5
"""Least share of the way from the mean image to the photo that a reconstruction goes, to be called like it."""
OUTSIDE = 1.25
"""How many times farther out than nearly all samples a part of a code may lie."""


def project(
    generator: Generator,
    images: Tensor,
    *,
    space: str | None = None,
    layers: str = "all",
    steps: int = 200,
    seed: int = 0,
    start: str | Encoder | Codes = "auto",
    n_samples: int | None = None,
    distances: Sequence[str] = ("pixels",),
    prior: float = 1e-3,
    learning_rate: float = 0.1,
    label: Any = None,
    callback: Callable[[Progress], None] | None = None,
) -> Projection:
    """Find the codes whose images are most like the given ones.

    Row i of the result depends on image i alone, not on what it shares a batch with (up to the rounding of sums).
    Ctrl-C ends it early, with the best that was found so far.

    Args:
        generator: any, of any family.
        images: [batch, channels, resolution, resolution] in [-1, 1]; see `photo.open_photo`.
        space: space of the codes; by default w+ where there is one, else the prior's (an EigenGAN's eps and all z).
        layers: layer range of what is optimised; the rest stays where it starts.
        steps: how often each image is compared with its photo; 0 gives the start.
        seed: fixes the samples from which it starts, and so the result.
        start: `samples`, the best of `n_samples` codes and the mean; `encoder`, the one beside the generator's files;
            `auto`, that where there is one; `mean`; or an Encoder or Codes.
        n_samples: by default 512 at 64 px, 32 at 256, 16 from 512.
        distances: names in `DISTANCES`, summed; `pixels` is always among them.
        prior: weight of the squared Mahalanobis distance of the code to its mean, for each dimension. More keeps codes
            where edits work, less comes closer to the photo; 0 leaves it out.
        learning_rate: of Adam, in σ a step; it rises over the first 5 % and falls to 0 over the last half.
        label: class of a conditional generator, as `Generator.sample` takes it.
        callback: is given the Progress of each step.

    Raises:
        UserError: where images or arguments do not fit the generator.

    Example:
        >>> import eigenlens
        >>> g = eigenlens.load_generator("toonfaces")
        >>> found = project(g, g(g.sample(1, seed=3)).clamp(-1, 1), steps=2)
        >>> found.codes.latent.shape, sorted(found.figures)
        (torch.Size([1, 1, 152]), ['explained', 'pixels', 'psnr', 'sigma', 'ssim'])
    """
    arguments = {
        "space": space, "layers": layers, "steps": steps, "seed": seed, "n_samples": n_samples,
        "distances": tuple(distances), "prior": prior, "learning_rate": learning_rate, "label": label,
    }  # fmt: skip
    walk = projecting(generator, images, start=start, **arguments)
    begun = next(walk)
    codes, shown, losses = [begun.codes], [begun.images], [begun.losses]
    done, is_stopped = 0, False
    try:
        for progress in walk:
            rows = slice(progress.first, progress.first + len(progress.codes))
            codes[0].latent[rows] = progress.codes.latent
            shown[0][rows], losses[0][rows] = progress.images, progress.losses
            done = progress.step
            if callback is not None:
                callback(progress)
    except KeyboardInterrupt:
        is_stopped = True
    names = _distance_names(distances)
    figures, notes = judge(generator, codes[0], shown[0], images, distances=names)
    about = {**arguments, "start": start if isinstance(start, str) else type(start).__name__.lower()}
    return Projection(codes[0], images, shown[0], figures, notes, done, is_stopped, about)


@dataclass(frozen=True)
class Progress:
    """How far some rows have come: the best codes so far."""

    step: int
    """Steps done, over all rows; 0 at the start."""
    n_steps: int
    """Steps that all rows take together."""
    first: int
    """Number of the first of these rows."""
    codes: Codes
    """The best so far."""
    images: Tensor
    """Their images, [rows, channels, height, width]."""
    losses: Tensor
    """What is minimised, [rows]."""


@dataclass(frozen=True)
class Projection:
    """Codes of photos, with all that tells how good they are."""

    codes: Codes
    """Codes, one a photo."""
    goals: Tensor
    """The photos, [batch, channels, height, width]."""
    images: Tensor
    """The images of the codes, [batch, channels, height, width]."""
    figures: dict[str, Tensor]
    """Name -> [batch]: `psnr` in dB, `ssim`, each distance, `sigma` (root mean square of the code in σ), `explained`
    (how much nearer to the photo than the mean image: 1 is equal, 0 no nearer)."""
    notes: tuple[tuple[str, ...], ...]
    """For each photo, why its code may be no good for editing; empty where it is good."""
    steps: int
    """Steps done."""
    is_stopped: bool = False
    """Whether Ctrl-C ended it."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """How it was made."""

    def table(self) -> list[dict[str, float]]:
        """Return the figures of each photo."""
        return [{name: float(column[row]) for name, column in self.figures.items()} for row in range(len(self.codes))]


def projecting(
    generator: Generator,
    images: Tensor,
    *,
    space: str | None = None,
    layers: str = "all",
    steps: int = 200,
    seed: int = 0,
    start: str | Encoder | Codes = "auto",
    n_samples: int | None = None,
    distances: Sequence[str] = ("pixels",),
    prior: float = 1e-3,
    learning_rate: float = 0.1,
    label: Any = None,
) -> Iterator[Progress]:
    """Do the same one step at a time: first the start of all rows, then each step of as many rows as fit a batch.

    A caller who stops asking has the best so far in what it was given last. See `project` for the arguments.
    """
    _check(generator, images, steps, prior, learning_rate)
    names = _distance_names(distances)
    measures = [DISTANCES[name] for name in names]
    target = projection_space(generator, space)
    mask = target.mask(layers).to(generator.device)
    images = images.to(generator.device)
    begun = starting_codes(generator, images, target, start=start, seed=seed, n_samples=n_samples, label=label)
    begun = begun.to(generator.device).with_latent(begun.latent.to(generator.device).clone())
    size = generator.batch_size

    def loss(made: Tensor, whitened: Tensor, goals: Tensor) -> Tensor:
        distance = torch.stack([measure(made, goals) for measure in measures]).sum(0)
        return distance + prior * whitened.square().mean((1, 2))

    spans = list(runtime.batches(len(begun), size))
    with torch.no_grad():
        shown = torch.cat([generator(begun[a:b]) for a, b in spans])
        losses = torch.cat([loss(shown[a:b], target.whiten(begun.latent[a:b]), images[a:b]) for a, b in spans])
    total = steps * len(spans)
    yield Progress(0, total, 0, begun, shown, losses)
    for number, (a, b) in enumerate(spans):
        goals, codes = images[a:b], begun[a:b]
        best, best_images, best_losses = codes.latent.clone(), shown[a:b].clone(), losses[a:b].clone()
        whitened = target.whiten(codes.latent).detach().requires_grad_()
        optimiser = torch.optim.Adam([whitened], learning_rate, (0.9, 0.99))
        for step in range(steps):
            latent = target.colour(whitened)
            made = generator(codes.with_latent(latent))
            each = loss(made, whitened, goals)
            optimiser.zero_grad(set_to_none=True)
            each.sum().backward()
            assert whitened.grad is not None
            whitened.grad *= mask
            with torch.no_grad():
                better = each < best_losses  # false for NaN
                best_losses = torch.where(better, each, best_losses)
                better = better[:, None, None]
                best = torch.where(better, latent, best)
                best_images = torch.where(better[..., None], made, best_images)
            optimiser.param_groups[0]["lr"] = learning_rate * schedule((step + 1) / steps)
            optimiser.step()
            yield Progress(number * steps + step + 1, total, a, codes.with_latent(best), best_images, best_losses)


def schedule(done: float) -> float:
    """Return the share of the learning rate when a share `done` of the steps is over (Karras 2020, appendix D).

    Example:
        >>> [round(schedule(done), 3) for done in (0.01, 0.05, 0.5, 0.75, 1.0)]
        [0.2, 1.0, 1.0, 0.5, 0.0]
    """
    return min(1.0, done / 0.05) * 0.5 * (1.0 - math.cos(math.pi * min(1.0, (1.0 - done) / 0.5)))


def projection_space(generator: Generator, space: str | None = None) -> Space:
    """Return the space in which photos of this generator are sought: w+, w, or the prior's.

    Raises:
        UserError: on a space that the generator lacks, or whose samples no code tells (StyleSpace).
    """
    if space is not None:
        found = generator.space(space)
        if found.name == "s":
            raise UserError("photos are not sought in space 's': its many dimensions have no useful prior; use w+ or w")
        return found
    return generator.spaces.get("w+") or generator.spaces.get("w") or generator.spaces[generator.prior]


# --- where it starts --------------------------------------------------------------------------------------------------


def starting_codes(
    generator: Generator,
    images: Tensor,
    space: Space,
    *,
    start: str | Encoder | Codes = "auto",
    seed: int = 0,
    n_samples: int | None = None,
    label: Any = None,
) -> Codes:
    """Return the codes in `space` from which a projection of `images` starts; see `project`."""
    if isinstance(start, str) and start in ("auto", "encoder"):
        place = find_encoder(generator)
        if place is None and start == "encoder":
            raise UserError(
                f"{generator.name} has no encoder beside its files; make one with: eigenlens encoder train SOURCE, "
                "or start from samples"
            )
        start = Encoder.load(place, generator) if place is not None else "samples"
    if isinstance(start, Encoder):
        found = start(images)
        found = replace(found, labels=generator.encode_labels(label, len(images), seed=seed))
        found = found if space.accepts(found.space.name) else generator.lift(found, space.name)
    elif isinstance(start, Codes):
        if len(start) != len(images):
            raise UserError(f"{len(start)} codes to start from came for {len(images)} images; give one each")
        found = generator.lift(start, space.name)
    elif start == "mean":
        found = _mean(generator, space, len(images), label)
    elif start == "samples":
        found = best_samples(generator, images, space, seed=seed, n=n_samples, label=label)
    else:
        raise unknown_name("start of a projection", start, STARTS)
    return found.with_latent(found.latent.expand(-1, space.slots, -1), space)


def best_samples(
    generator: Generator, images: Tensor, space: Space, *, seed: int = 0, n: int | None = None, label: Any = None
) -> Codes:
    """Return for each image the nearest of the mean code and `n` samples, by `pixel_distance`."""
    n = max(16, min(512, 2**21 // generator.resolution**2)) if n is None else n
    candidates = concatenate(
        [_mean(generator, space, 1, label), generator.sample(n, seed=seed, space=space.name, label=label)]
    ).to(generator.device)
    nearest = torch.full((len(images),), math.inf, device=images.device)
    chosen = torch.zeros(len(images), dtype=torch.long, device=images.device)
    with torch.no_grad():
        for a, b in runtime.batches(len(candidates), generator.batch_size):
            for number, made in enumerate(generator(candidates[a:b]), start=a):
                apart = pixel_distance(made[None], images)
                chosen = torch.where(apart < nearest, number, chosen)
                nearest = torch.minimum(apart, nearest)
    return candidates[chosen.tolist()]


def _mean(generator: Generator, space: Space, n: int, label: Any) -> Codes:
    latent = space.colour(torch.zeros(n, space.slots, space.dim))
    return Codes(space, latent, generator.encode_labels(label, n))


# --- how good it is ---------------------------------------------------------------------------------------------------


def judge(
    generator: Generator, codes: Codes, images: Tensor, goals: Tensor, *, distances: Sequence[str] = ("pixels",)
) -> tuple[dict[str, Tensor], tuple[tuple[str, ...], ...]]:
    """Return the figures of reconstructions `images` of `goals`, and for each why it may be no good for editing.

    Two things count: whether the reconstruction is nearer to the photo than the mean image is, and whether any part of
    the code lies farther from the mean than nearly all samples do.
    """
    goals, images = goals.to(images), images.detach()
    with torch.no_grad():
        figures = {"psnr": psnr(images, goals), "ssim": ssim(images, goals)}
        figures |= {name: DISTANCES[name](images, goals) for name in distances}
        reach = codes.space.whiten(codes.latent).square().mean((1, 2)).sqrt()
        figures["sigma"] = reach
        labels = None if codes.labels is None else "random"
        some = generator.sample(min(64, 4 * generator.batch_size), seed=0, label=labels).to(generator.device)
        mean_image = generator.render(some).mean(0, keepdim=True).to(goals)
        figures["explained"] = 1 - figures["pixels"] / pixel_distance(mean_image, goals).clamp(min=1e-12)
        typical = generator.sample(TYPICAL_SAMPLES, seed=0, space=codes.space.name, label=labels)
        outside = parts_reach(codes) / parts_reach(typical).quantile(0.999, dim=0).to(codes.latent).clamp(min=1e-6)
    notes: list[tuple[str, ...]] = []
    for row in range(len(codes)):
        found = []
        if not figures["explained"][row] >= NEAR:
            found.append(
                f"unlike the photo: only {max(0.0, float(figures['explained'][row])):.0%} of the way from the mean "
                "image; edits will show another picture"
            )
        farthest = int(outside[row].argmax())
        if outside[row, farthest] > OUTSIDE:
            found.append(
                f"{codes.space.parts[farthest].name} lies {float(outside[row, farthest]):.1f} times as far out as "
                "samples do; edits may break (raise the prior)"
            )
        notes.append(tuple(found))
    return {name: column.cpu() for name, column in figures.items()}, tuple(notes)


def parts_reach(codes: Codes) -> Tensor:
    """Return the root mean square in σ of each part of codes, [batch, parts]."""
    space = codes.space
    whitened = space.whiten(codes.latent.expand(-1, space.slots, -1))
    parts = [whitened[:, part.slot, part.start : part.stop] for part in space.parts]
    if space.moments is not None:  # the principal axes mix coordinates: only whole slots can be told apart
        parts = [whitened[:, part.slot] for part in space.parts]
    return torch.stack([part.square().mean(1).sqrt() for part in parts], dim=1)


# --- what one sees ----------------------------------------------------------------------------------------------------

TILE = 192  # pixels that a tile of the sheet has at least
LARGEST_TILE = 512


def projection_sheet(
    photos: Sequence[Photo], projection: Projection, notes: Sequence[Sequence[str]] | None = None
) -> Image.Image:
    """Draw each photo with its square, what was projected, the reconstruction, and the difference; figures beside.

    Args:
        photos: those that were projected.
        projection: the result.
        notes: warnings by photo, written above; those of the projection by default.
    """
    resolution = projection.goals.shape[-1]
    size = resolution * max(1, math.ceil(TILE / resolution)) if resolution <= LARGEST_TILE else LARGEST_TILE
    tiles, labels, warnings = [], [], []
    rows = zip(photos, projection.table(), notes or projection.notes, strict=True)
    for row, (photo, figures, of_photo) in enumerate(rows):
        goal, made = (each[row].float().cpu().clamp(-1, 1) for each in (projection.goals, projection.images))
        outline = from_uint8(np.array(photo.outline(size)))
        shown = [_scaled(each, size).expand(3, -1, -1) for each in (goal, made, (made - goal).clamp(-1, 1))]
        tiles += [outline, *shown]
        labels.append(f"{photo.name[:40]}  {figures['psnr']:.1f} dB  SSIM {figures['ssim']:.2f}")
        warnings += [f"{photo.name}: {note}." for note in of_photo]
    columns = ["photo", "square", "reconstruction", "difference (grey: 0)"]
    title = " ".join(warnings[:20])
    return grid(torch.stack(tiles), columns=4, row_labels=labels, column_labels=columns, title=title)


def _scaled(image: Tensor, size: int) -> Tensor:
    """Repeat pixels of a small image, or average those of a large one: [channels, size, size]."""
    if image.shape[-1] > size:
        return F.adaptive_avg_pool2d(image, size)
    times = size // image.shape[-1]
    return image.repeat_interleave(times, -1).repeat_interleave(times, -2)


def _distance_names(distances: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(("pixels", *distances)))
    for name in names:
        if name not in DISTANCES:
            raise unknown_name("distance", name, DISTANCES)
    return names


def _check(generator: Generator, images: Tensor, steps: int, prior: float, learning_rate: float) -> None:
    wanted = (generator.channels, generator.resolution, generator.resolution)
    if images.ndim != 4 or tuple(images.shape[1:]) != wanted or not len(images):
        raise UserError(
            f"images of shape {list(images.shape)} came; {generator.name} takes [batch, {', '.join(map(str, wanted))}]"
        )
    if not images.is_floating_point() or not bool(images.isfinite().all()) or float(images.abs().max()) > 1.001:
        raise UserError("images are floats in [-1, 1]; images.from_uint8 makes them of bytes")
    if steps < 0:
        raise UserError(f"{steps} steps came; give 0 or more")
    for name, value in (("prior", prior), ("learning rate", learning_rate)):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"the {name} {value} is not possible; give a number from 0")
