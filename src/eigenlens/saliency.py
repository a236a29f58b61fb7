"""Masks for free: a direction that changes the background tells the object from it, and a small network learns that.

Source:
    Voynov & Babenko, Unsupervised discovery of interpretable directions, ICML 2020, section 5 (the intensity rule and
    the difference rule); Voynov, Morozov, Babenko, Object segmentation without labels with large-scale generative
    models, ICML 2021 (max-Fβ, accuracy and IoU as they are computed here).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from . import runtime
from .algebra import compose
from .directions import Directions, concatenate
from .effect import sample_for, traverse
from .errors import UserError
from .files import network_file, written_beside
from .generator import Generator
from .images import from_uint8, grid

SEGMENTER_FORMAT = "eigenlens.segmenter/1"

# --- which direction changes the background ---------------------------------------------------------------------------

BORDER = 0.09
"""Width of the border as a share of the image's side."""
CENTRE = 0.3
"""Side of the box in the centre as a share of the image's side."""
NEAR_BEST = 0.25
"""A direction is chosen beside the best one where its contrast reaches this share of the best contrast ..."""
CLEAR = 1.5
"""... and it changes the border this many times as much as the centre."""
MOST_CANDIDATES = 24
"""Directions that pure ones are combined from: those that change the border most."""
SEEN = 64
"""Resolution in pixels at which their changes are compared."""
RIDGE = 0.005
"""What is added to the change of the object, as a share of its mean: measured changes are not exact."""


def border_of(height: int, width: int) -> Tensor:
    """Return where the border of an image is: bool [height, width]."""
    inside = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = (max(1, round(BORDER * side)) for side in (height, width))
    inside[rows : height - rows, columns : width - columns] = True
    return ~inside


def centre_of(height: int, width: int) -> Tensor:
    """Return where the centre of an image is: bool [height, width]."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    top, left = (round((1 - CENTRE) / 2 * side) for side in (height, width))
    mask[top : height - top, left : width - left] = True
    return mask


def change(below: Tensor, above: Tensor) -> Tensor:
    """Return how much each pixel differs: root mean square over channels, as shown (clamped).

    Args:
        below, above: [..., channels, height, width].

    Returns:
        [..., height, width].
    """
    return (above.clamp(-1, 1) - below.clamp(-1, 1)).square().mean(-3).sqrt()


def background_changes(
    generator: Generator, directions: Directions, *, n: int = 16, seed: int = 0, strength: float = 2.0
) -> Tensor:
    """Measure how much each direction changes the border of images, and their centre.

    Args:
        directions: any of the generator's; raw ones are measured in σ all the same.
        n: codes of `seed`.
        strength: σ each way.

    Returns:
        Mean change at the border and in the centre, [k, 2].
    """
    codes = sample_for(generator, directions, n, seed=seed)
    directions = directions.in_sigma(generator.space(directions.space))
    rows = []
    for k in runtime.progress(range(len(directions)), what="background"):
        below, above = traverse(generator, codes, directions, k, (-strength, strength)).unbind(1)
        maps = change(below, above)  # [n, h, w]
        rows.append(torch.stack([maps[:, place(*maps.shape[1:])].mean() for place in (border_of, centre_of)]))
    return torch.stack(rows) if rows else torch.empty(0, 2)


def choose_background(changes: Tensor) -> list[int]:
    """Choose the directions that change the background: the largest change at the border, the least at the centre.

    Args:
        changes: at the border and in the centre, [k, 2]; see `background_changes`.

    Returns:
        Indices, the clearest first: the direction of the largest contrast (border less centre), and those that come
        near it (see `NEAR_BEST` and `CLEAR`).

    Raises:
        UserError: where no direction changes the border more than the centre.

    Example:
        >>> choose_background(torch.tensor([[0.1, 0.3], [0.4, 0.1], [0.2, 0.1], [0.5, 0.4]]))
        [1, 2]
    """
    border, centre = changes.unbind(1)
    contrast = (border - centre).nan_to_num(0.0)
    order = contrast.argsort(descending=True, stable=True).tolist()
    if not order or contrast[order[0]] <= 0:
        raise UserError(
            "none of these directions changes the border of images more than their centre; try those of another "
            "method, or name one that changes the background"
        )
    near = [k for k in order[1:] if contrast[k] >= NEAR_BEST * contrast[order[0]] and border[k] >= CLEAR * centre[k]]
    return [order[0], *near]


# --- masks of samples -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskRule:
    """How the mask of a sample follows from what background directions do to it."""

    rule: Literal["difference", "intensity"] = "difference"
    """`difference`: the object is what changes little between both ends. `intensity`: what stays dark at the upper end,
    for directions that turn the background white."""
    strength: float = 3.0
    """How far to move, in σ: each way for the difference, upwards for the intensity. Published: 26 raw units of a
    BigGAN."""
    threshold: float = 0.65
    """Difference: a pixel belongs to the object where, along some direction, it changes by less than this share of what
    the median pixel of the border does. Intensity: where its mean over channels is below this (published: 0.95)."""
    doubt: float = 0.15
    """Difference: pixels within this of the threshold are not learnt from, for blur and shadows change half as much."""
    smooth: int = 5
    """Side in pixels of the box over which changes are averaged first; 1 averages nothing."""
    least: float = 0.05
    """Least share of the image that an object takes (published: 0.05)."""
    most: float = 0.8
    """Largest share; samples outside are left out (published: 0.5, for objects that leave more room than faces do)."""

    def __post_init__(self) -> None:
        if self.rule not in ("difference", "intensity"):
            raise UserError(f"rule {self.rule!r} is not known; allowed: difference, intensity")
        if not 0 <= self.least < self.most <= 1 or self.smooth < 1 or not self.smooth % 2:
            raise UserError("least and most are shares with 0 <= least < most <= 1, and smooth is an odd number from 1")
        if not 0 <= self.doubt < math.inf:
            raise UserError(f"doubt {self.doubt} came; it is a number from 0")
        if not (math.isfinite(self.strength) and math.isfinite(self.threshold)) or not self.strength:
            raise UserError("strength and threshold are numbers, and strength is not 0")


def difference_mask(changes: Tensor, threshold: float, *, smooth: int = 1) -> Tensor:
    """Tell the object by what changes little along some background direction.

    Args:
        changes: of each pixel along each direction, [batch, directions, height, width]; see `change`.
        threshold: share of the median change of the border.
        smooth: see `MaskRule`.

    Returns:
        bool [batch, height, width], holes filled.
    """
    height, width = changes.shape[-2:]
    usual = changes[..., border_of(height, width)].median(-1).values  # [batch, directions]
    share = changes / usual.clamp(min=1e-6)[..., None, None]
    padded = F.pad(share, (smooth // 2,) * 4, mode="replicate")
    share = F.avg_pool2d(padded, smooth, stride=1).amin(1)  # the least over directions
    return fill_holes(share < threshold)


def intensity_mask(images: Tensor, threshold: float) -> Tensor:
    """Tell the object by what stays darker than `threshold` where the background has turned white.

    Args:
        images: moved along background directions, [batch, directions, channels, height, width] in [-1, 1].

    Returns:
        bool [batch, height, width], holes filled.
    """
    return fill_holes((images.clamp(-1, 1).mean(2) < threshold).any(1))


def fill_holes(masks: Tensor) -> Tensor:
    """Add to each mask [batch, height, width] what it encloses: all that no path outside joins to the border."""
    outside = ~masks
    reached = torch.zeros_like(masks)
    reached[:, [0, -1]], reached[:, :, [0, -1]] = outside[:, [0, -1]], outside[:, :, [0, -1]]
    while True:
        grown = (F.max_pool2d(reached[:, None].float(), 3, 1, 1)[:, 0] > 0) & outside
        if torch.equal(grown, reached):
            return ~reached
        reached = grown


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a generator with their masks."""

    images: Tensor
    """[n, views, channels, height, width] in [-1, 1]: each sample as it is, and moved along background directions."""
    masks: Tensor
    """bool [n, height, width]: where the object is, in every view."""
    known: Tensor
    """bool [n, height, width]: where that is beyond doubt."""
    kept: Tensor
    """Whether the object's share of the image is a likely one, bool [n]."""


def sample_masks(
    generator: Generator, directions: Directions, rule: MaskRule, n: int, *, seed: int = 0, start: int = 0
) -> Samples:
    """Draw samples `start` to `start + n` of `seed` and make their masks.

    Args:
        directions: those that change the background, and no others.
        rule: how masks follow from them.

    Returns:
        Samples with 1 + 2 views a direction; those that are not `kept` included.
    """
    codes = sample_for(generator, directions, n, seed=seed, start=start)
    directions = directions.in_sigma(generator.space(directions.space))
    steps = (-rule.strength, rule.strength)
    moved = torch.stack([traverse(generator, codes, directions, k, steps) for k in range(len(directions))], dim=1)
    with torch.inference_mode():  # moved: [n, directions, 2, c, h, w]
        plain = torch.cat([
            generator(codes[low:high]).cpu() for low, high in runtime.batches(n, generator.batch_size)
        ])  # fmt: skip
    if rule.rule == "difference":
        changes = change(moved[:, :, 0], moved[:, :, 1])
        masks = difference_mask(changes, rule.threshold - rule.doubt, smooth=rule.smooth)
        known = masks | ~difference_mask(changes, rule.threshold + rule.doubt, smooth=rule.smooth)
    else:
        masks = intensity_mask(moved[:, :, 1], rule.threshold)
        known = torch.ones_like(masks)
    area = masks.float().mean((1, 2))
    views = torch.cat([plain[:, None], moved.flatten(1, 2)], dim=1).clamp(-1, 1)
    return Samples(views, masks, known, (area >= rule.least) & (area <= rule.most))


def pure_background(
    generator: Generator,
    directions: Directions,
    chosen: Sequence[int],
    rule: MaskRule = MaskRule(),
    *,
    n: int = 24,
    seed: int = 0,
    strength: float = 2.0,
) -> Directions:
    """Combine directions into those along which the background changes most for what the object changes.

    An axis that changes the background often moves clothes or hair a little as well, and another one moves these back.
    First masks follow from the chosen directions. Then, with B and O the mean products of the changes of two directions
    outside and inside of these masks, the weights a of the new ones have the largest aᵀBa / aᵀOa. The best is kept, and
    those whose root reaches `NEAR_BEST` of its root, and `CLEAR`.

    Args:
        generator: whose.
        directions: straight ones; at most `MOST_CANDIDATES` of them are combined.
        chosen: indices of those that change the background; see `choose_background`.
        rule: how the first masks follow from them.
        n: samples of `seed`.
        strength: σ each way at which changes are measured.

    Returns:
        Directions in σ, named background-1 and so on; the purest first. The chosen ones where no first mask is likely.

    Raises:
        Unsupported: where directions are curved.
    """
    directions.check_straight("combining directions")
    space = generator.space(directions.space)
    directions = directions.in_sigma(space)
    others = [k for k in range(len(directions)) if k not in chosen]
    if len(directions) > MOST_CANDIDATES:
        at_border = background_changes(generator, directions, n=8, seed=seed, strength=strength)[:, 0]
        others.sort(key=lambda k: -float(at_border[k]))
    candidates = directions[[*chosen, *others][:MOST_CANDIDATES]]
    outside, inside = (torch.zeros(2, len(candidates), len(candidates), dtype=torch.float64)).unbind(0)
    for low, high in runtime.batches(n, max(1, generator.batch_size // 4)):
        made = sample_masks(generator, directions[list(chosen)], rule, high - low, seed=seed, start=low)
        codes = sample_for(generator, directions, high - low, seed=seed, start=low)
        ends = [traverse(generator, codes, candidates, k, (-strength, strength)) for k in range(len(candidates))]
        slopes = torch.stack([_seen(pair[:, 1].clamp(-1, 1) - pair[:, 0].clamp(-1, 1)) for pair in ends])
        for total, where in ((outside, ~made.masks & made.known), (inside, made.masks)):
            weight = _seen((where & made.kept[:, None, None])[:, None].float())
            rows = (slopes * weight.sqrt()).flatten(1).double()  # [k, n c h w]
            total += rows @ rows.T
    if not inside.trace() > 0:
        return directions[list(chosen)]
    ridge = RIDGE * inside.trace() / len(inside) * torch.eye(len(inside), dtype=torch.float64)
    back = torch.linalg.inv(torch.linalg.cholesky(inside + ridge))
    ratios, rotated = torch.linalg.eigh(back @ outside @ back.T)  # ascending
    weights = (back.T @ rotated).T.flip(0)
    clear = ratios.flip(0).clamp(min=0).sqrt()
    least = max(NEAR_BEST * float(clear[0]), min(CLEAR, float(clear[0])))
    kept = [k for k, ratio in enumerate(clear.tolist()) if ratio >= least]
    pure = [compose(candidates, weights[k].tolist(), f"background-{k + 1}", space=space) for k in kept]
    return concatenate([each.in_sigma(space) for each in pure])


def _seen(images: Tensor) -> Tensor:
    """Return images averaged to `SEEN` pixels, where they are larger."""
    return F.adaptive_avg_pool2d(images, SEEN) if images.shape[-1] > SEEN else images


# --- the network that learns masks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmenterConfig:
    """What fixes the shape of a segmenter."""

    resolution: int = 64
    """Pixels of the shorter side of the images that it looks at, a multiple of 8; others are brought to that size."""
    width: int = 16
    """Channels of the first level; the deeper three have 2, 3 and 4 times as many."""

    def __post_init__(self) -> None:
        if self.resolution < 16 or self.resolution % 8 or self.width < 1:
            raise UserError("resolution is a multiple of 8 from 16, and width a whole number from 1")


class UNet(nn.Module):
    """Four levels of 3x3 convolutions, halved and doubled again, with connections across (Ronneberger et al., 2015)."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        widths = [config.width * level for level in (1, 2, 3, 4)]
        self.down = nn.ModuleList(_Convolutions(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_Convolutions(i + o, o) for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.out = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, height, width] of the object for images [batch, 3, height, width], sides by 8."""
        across = []
        h = images
        for level, convolutions in enumerate(self.down):
            h = convolutions(F.max_pool2d(h, 2) if level else h)
            across.append(h)
        for convolutions, beside in zip(self.up, across[-2::-1], strict=True):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = convolutions(torch.cat([h, beside], dim=1))
        return self.out(h)[:, 0]


class _Convolutions(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        )  # fmt: skip


class Segmenter:
    """A trained network that tells the object of a picture from its background.

    Args:
        network: gives logits.
        config: its shape.
        about: what is remembered of its training, plain JSON.
    """

    def __init__(self, network: UNet, config: SegmenterConfig, about: dict[str, Any] | None = None) -> None:
        self.network, self.config, self.about = network.eval().requires_grad_(False), config, dict(about or {})

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """Return how likely each pixel of a picture belongs to the object, float32 [height, width], at its own size.

        It is the mean of what the network says of the picture and of its mirror image.
        """
        width, height = picture.size
        scale = self.config.resolution / min(width, height)
        sides = [max(8, 8 * round(side * scale / 8)) for side in (height, width)]
        image = from_uint8(np.asarray(picture.convert("RGB")))[None]  # [1, 3, h, w]
        with torch.no_grad():
            fitted = F.interpolate(image, sides, mode="bilinear", antialias=True, align_corners=False)
            straight, mirrored = self.network(torch.cat([fitted, fitted.flip(-1)])).chunk(2)
            logits = (straight + mirrored.flip(-1))[:, None] / 2
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return logits[0, 0].sigmoid().numpy()

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the segmenter, with what is remembered of its training."""
        from safetensors.torch import save_file

        header = {"format": SEGMENTER_FORMAT, "config": dataclasses.asdict(self.config), "about": self.about}
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        with written_beside(path, force=force) as beside:
            save_file(tensors, beside, metadata={"eigenlens": json.dumps(header)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Segmenter:
        """Read a segmenter.

        Raises:
            UserError: where the file is none.
        """
        make = "eigenlens saliency train GENERATOR"
        with network_file(path, "segmenter", SEGMENTER_FORMAT, make=make) as (header, tensors):
            config = SegmenterConfig(**header["config"])
            network = UNet(config)
            network.load_state_dict(tensors)
        return cls(network, config, header.get("about"))


# --- pictures of masks ------------------------------------------------------------------------------------------------


def mask_sheet(images: Sequence[Tensor], masks: Sequence[np.ndarray], *, title: str = "") -> Image.Image:
    """Draw images above themselves with the background darkened.

    Args:
        images: [channels, height, width] in [-1, 1], of one size.
        masks: bool or probabilities, [height, width].
    """
    cut = [
        torch.where(torch.from_numpy(np.asarray(mask) >= CUT), image, -1 + 0.15 * (image + 1))
        for image, mask in zip(images, masks, strict=True)
    ]
    return grid(torch.stack([*images, *cut]), columns=len(images), title=title)


# --- scores -----------------------------------------------------------------------------------------------------------

THRESHOLDS = 255
BETA_SQUARED = 0.3
CUT = 0.5
"""Probability from which a pixel counts as the object, for IoU and accuracy."""


@dataclass(frozen=True)
class MaskScores:
    """How well masks meet the true ones, each figure a mean over images."""

    max_f_beta: float
    """Fβ with β² = 0.3, averaged over images at each of 255 thresholds; the largest of these averages."""
    iou: float
    """Intersection over union of the objects, at probability 0.5."""
    accuracy: float
    """Share of the pixels that are right, at probability 0.5."""
    mae: float
    """Mean absolute difference of probability and truth."""
    n: int
    """Images."""


def score_masks(likely: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> MaskScores:
    """Compare masks with true ones.

    An image whose true mask and predicted one are both empty counts as met in full.

    Args:
        likely: of each image, probabilities in [0, 1], or a bool mask, [height, width].
        true: of each image, the bool mask [height, width].

    Raises:
        UserError: where there are none, or shapes differ.

    Example:
        >>> whole, half = np.ones((2, 2), bool), np.array([[True, True], [False, False]])
        >>> score = score_masks([whole], [half])
        >>> score.iou, score.accuracy, score.mae
        (0.5, 0.5, 0.5)
    """
    if len(likely) != len(true) or not len(true):
        raise UserError(f"{len(likely)} masks came for {len(true)} true ones; give one each, and at least one")
    thresholds = np.arange(THRESHOLDS) / THRESHOLDS
    f_sum = np.zeros(THRESHOLDS)
    figures = []
    for probability, truth in zip(likely, true, strict=True):
        if probability.shape != truth.shape:
            raise UserError(f"a mask of shape {list(probability.shape)} came for a true one of {list(truth.shape)}")
        probability, truth = probability.astype(np.float64), truth.astype(bool)
        f_sum += _f_beta(probability, truth, thresholds)
        cut = probability >= CUT
        union = int((cut | truth).sum())
        iou = int((cut & truth).sum()) / union if union else 1.0
        figures.append((iou, float((cut == truth).mean()), float(np.abs(probability - truth).mean())))
    iou, accuracy, mae = np.mean(figures, axis=0).tolist()
    return MaskScores(float(f_sum.max() / len(true)), iou, accuracy, mae, len(true))


def _f_beta(probability: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return Fβ of `probability > threshold` for each threshold, [n]."""
    n_above = len(thresholds)
    # how many thresholds each pixel exceeds, so that one histogram serves them all
    exceeded = np.searchsorted(thresholds, probability.ravel(), side="left")
    at = lambda weights: np.bincount(exceeded, weights, n_above + 1)[::-1].cumsum()[::-1][1:]  # noqa: E731
    chosen, right = at(None), at(truth.ravel().astype(np.float64))
    wanted = truth.sum()
    if not wanted:
        return (chosen == 0).astype(np.float64)
    precision = right / np.maximum(chosen, 1)
    recall = right / wanted
    return (1 + BETA_SQUARED) * precision * recall / np.maximum(BETA_SQUARED * precision + recall, 1e-12)
