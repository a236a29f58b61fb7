"""FactorVAE and beta-VAE scores: they need pictures in which a true factor is held fixed, hence rendered ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import runtime
from ..directions import Directions
from ..effect import image_features, sample_for
from ..errors import UserError
from ..generator import Generator
from ..metric import Score, make_score
from .features import collect, in_sigma, plain

TOONFACES = Path(__file__).parent.parent / "assets" / "toonfaces.npz"
BINS = 20
"""Bins of equal count of a continuous factor; a picture whose factor lies in the same bin counts as equal in it."""
GROUP = 64
"""Pictures a vote."""
PRUNED = 0.05
"""A direction whose codes vary less than this, in σ of the samples, takes no part."""
READABLE = 0.1
"""A direction that the encoder reads with an R² below this takes no part: its codes would be noise."""
PIXELS = 16
"""Side of the area-pooled pixels that the encoder reads."""


# --- from rendered pictures to codes ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoded:
    """Codes of labelled pictures."""

    codes: Tensor
    """[n, k], in σ of the samples."""
    factors: dict[str, np.ndarray]
    """Factor -> value of each picture, whole numbers [n]; below 0 where it does not apply."""
    held_out: Tensor
    """R² of the encoder on samples of the generator that it did not see, [k]."""


def encode_rendered(
    generator: Generator, directions: Directions, images: Tensor, factors: Mapping[str, np.ndarray], n: int, seed: int
) -> Encoded:
    """Read rendered pictures as codes along directions, by an encoder fitted on the generator's own samples.

    The encoder is linear: ridge regression of coordinates along the directions on area-pooled pixels (16 x 16) and the
    energies of `image_features`. How well it reads the generator's own samples stands beside every score.

    Args:
        images: rendered pictures, [pictures, channels, size, size] in [-1, 1].
        factors: their true factors, [pictures] each.
        n: samples of the generator to fit on, of which the last fifth tests.
    """
    directions = in_sigma(generator, directions)
    codes = sample_for(generator, directions, n, seed=seed)
    places = torch.stack([directions.coordinates(codes, k) for k in range(len(directions))], 1).cpu().double()
    rows = collect(generator, codes, encoder_features, what="encoder")
    seen = n - n // 5
    offset, weights = fit_encoder(rows[:seen], places[:seen])
    left = (places[seen:] - offset - rows[seen:] @ weights).square().sum(0)
    held_out = 1 - left / (places[seen:] - places[seen:].mean(0)).square().sum(0).clamp(min=1e-12)
    size = (generator.resolution, generator.resolution)
    pieces = []
    for start, stop in runtime.batches(len(images), 256):
        some = F.interpolate(images[start:stop], size=size, mode="area")
        some = some.mean(1, keepdim=True) if generator.channels == 1 else some.expand(-1, 3, -1, -1)
        pieces.append(offset + encoder_features(some) @ weights)
    return Encoded(torch.cat(pieces), {name: cut(values) for name, values in factors.items()}, held_out)


def encoder_features(images: Tensor) -> Tensor:
    """Return what the encoder reads, [batch, features] in float64."""
    pooled = F.adaptive_avg_pool2d(images.clamp(-1, 1), PIXELS).flatten(1).double()
    return torch.cat([pooled, image_features(images)], dim=1)


def fit_encoder(rows: Tensor, places: Tensor, penalty: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Fit places [n, k] on rows [n, features] by ridge regression on standardised features.

    Returns:
        Offset [k] and weights [features, k] for rows as they are.
    """
    mean, scale = rows.mean(0), rows.std(0).clamp(min=1e-6)
    standard = (rows - mean) / scale
    normal = standard.T @ standard / len(rows) + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
    weights = torch.linalg.solve(normal, standard.T @ (places - places.mean(0)) / len(rows)) / scale[:, None]
    return places.mean(0) - mean @ weights, weights


def cut(values: np.ndarray) -> np.ndarray:
    """Turn the values of a factor into whole numbers: bins of equal count where it is continuous; -1 where absent."""
    if not np.issubdtype(values.dtype, np.floating):
        return values.astype(np.int64)
    there = np.isfinite(values)
    edges = np.quantile(values[there], np.linspace(0, 1, BINS + 1)[1:-1])
    return np.where(there, np.searchsorted(edges, np.where(there, values, 0), side="right"), -1)


def load_rendered(path: str | Path) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Read labelled pictures, as `tools/toonfaces/render.py` writes them.

    Raises:
        UserError: where the file is none.
    """
    try:
        data = np.load(path, allow_pickle=False)
        names = list(json.loads(data["meta"].item())["factors"])
        images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return images, {name: data[f"factor/{name}"] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} holds no labelled pictures ({error}); tools/toonfaces/render.py writes some"
        ) from error


# --- groups that share a factor ---------------------------------------------------------------------------------------


def draw_groups(
    factors: Mapping[str, np.ndarray], n_groups: int, *, seed: int, stream: str, group: int = GROUP
) -> tuple[np.ndarray, np.ndarray]:
    """Draw groups of pictures that share one factor and are random in all others.

    Returns:
        Pictures [n_groups, group] and the number of the shared factor [n_groups].
    """
    random = runtime.generator_for(seed, stream)
    names = list(factors)
    members = {
        name: [np.flatnonzero(values == value) for value in np.unique(values[values >= 0])]
        for name, values in factors.items()
    }
    which = random.integers(len(names), size=n_groups)
    rows = np.empty((n_groups, group), np.int64)
    for row, choice in enumerate(which):
        alike = members[names[choice]]
        some = alike[random.integers(len(alike))]
        rows[row] = random.choice(some, group)
    return rows, which


@dataclass(frozen=True)
class FactorVae:
    """How well the direction that varies least tells which factor a group of pictures shares.

    Toon faces whose factors are known are read as codes by a linear encoder (`encode_rendered`); in groups of 64 that
    share one factor, the direction whose codes vary least, relative to all pictures, votes. The value is the accuracy
    of the majority vote. Continuous factors are shared where they lie in the same twentieth of their range.

    Source:
        Kim and Mnih, Disentangling by factorising, ICML 2018, section 4. Deviations: 3,000 votes to train and 1,500 to
        test (10,000 and 5,000 there); the encoder, whose held-out R² stands in `details`.
    """

    data: str = ""
    """Labelled pictures in `.npz`; by default the bundled toon faces."""
    n_samples: int = 2000
    """Samples of the generator that the encoder is fitted on."""
    n_train: int = 3000
    """Votes that make the table."""
    n_test: int = 1500
    """Votes that test it."""
    name: ClassVar[str] = "factor_vae_toonfaces_v1"
    uses_strength: ClassVar[bool] = False

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Encode pictures, draw groups, and compute the accuracy."""
        return _score(self, generator, directions, factor_vae_votes, majority_accuracy, seed)


@dataclass(frozen=True)
class BetaVae:
    """How well a linear classifier tells which factor pairs of pictures share, from how much their codes differ.

    As `factor_vae_toonfaces_v1`, with 32 pairs a vote; the classifier sees the mean of |c - c'|.

    Source:
        Higgins et al., beta-VAE, ICLR 2017, section 3. Deviations: as there; 32 pairs a vote (64 there).
    """

    data: str = ""
    """Labelled pictures in `.npz`; by default the bundled toon faces."""
    n_samples: int = 2000
    """Samples of the generator that the encoder is fitted on."""
    n_train: int = 3000
    """Votes that train the classifier."""
    n_test: int = 1500
    """Votes that test it."""
    name: ClassVar[str] = "beta_vae_toonfaces_v1"
    uses_strength: ClassVar[bool] = False

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Encode pictures, draw groups, and compute the accuracy."""
        return _score(self, generator, directions, beta_vae_differences, linear_accuracy, seed)


def _score(
    metric: FactorVae | BetaVae,
    generator: Generator,
    directions: Directions,
    describe: Callable[[Tensor, np.ndarray], Tensor],
    accuracy: Callable[..., float],
    seed: int,
) -> Score:
    images, factors = load_rendered(metric.data or TOONFACES)
    encoded = encode_rendered(generator, directions, images, factors, metric.n_samples, seed)
    codes = torch.where(encoded.held_out >= READABLE, encoded.codes, 0.0)
    found = votes_score(codes, encoded.factors, describe, accuracy, metric.n_train, metric.n_test, seed)
    found |= {"encoder_r2": encoded.held_out, "factors": list(encoded.factors)}
    return make_score(metric, generator, directions, found.pop("value"), n=metric.n_test, seed=seed, **plain(found))


# --- arithmetic -------------------------------------------------------------------------------------------------------


def votes_score(
    codes: Tensor,
    factors: Mapping[str, np.ndarray],
    describe: Callable[[Tensor, np.ndarray], Tensor],
    accuracy: Callable[..., float],
    n_train: int,
    n_test: int,
    seed: int,
) -> dict[str, Any]:
    """Draw groups, describe each by its codes, and predict the shared factor.

    Directions whose codes hardly vary take no part; where none is left, the value is chance.
    """
    live = codes.std(0) >= PRUNED
    chance = 1 / len(factors)
    if not live.any():
        return {"value": chance, "chance": chance, "live": live.tolist()}
    standard = codes[:, live] / codes[:, live].std(0)
    rows, which = draw_groups(factors, n_train + n_test, seed=seed, stream="metrics/groups")
    described = describe(standard, rows)
    wanted = torch.from_numpy(which)
    value = accuracy(described[:n_train], wanted[:n_train], described[n_train:], wanted[n_train:], len(factors))
    return {"value": value, "chance": chance, "live": live.tolist()}


def factor_vae_votes(codes: Tensor, rows: np.ndarray) -> Tensor:
    """Return which direction varies least in each group, as rows of one-hot, [groups, k]."""
    variance = codes[torch.from_numpy(rows)].var(1)  # [groups, k]
    return F.one_hot(variance.argmin(1), codes.shape[1]).double()


def beta_vae_differences(codes: Tensor, rows: np.ndarray) -> Tensor:
    """Return the mean |c - c'| over the pairs of each group, [groups, k]."""
    some = codes[torch.from_numpy(rows)]  # [groups, group, k]
    return (some[:, ::2] - some[:, 1::2]).abs().mean(1)


def majority_accuracy(votes: Tensor, which: Tensor, test: Tensor, wanted: Tensor, n_factors: int) -> float:
    """Give each direction the factor that it votes for most often, and return how often that is right."""
    table = votes.T @ F.one_hot(which, n_factors).double()  # [k, factors]
    return float((table.argmax(1)[test.argmax(1)] == wanted).double().mean())


def linear_accuracy(rows: Tensor, which: Tensor, test: Tensor, wanted: Tensor, n_factors: int) -> float:
    """Fit a multinomial logistic regression on rows, and return its accuracy on `test`."""
    mean, scale = rows.mean(0), rows.std(0).clamp(min=1e-9)
    rows, test = (rows - mean) / scale, (test - mean) / scale
    weights = torch.zeros(rows.shape[1] + 1, n_factors, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    full = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(full @ weights, which) + 1e-4 * weights.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    guess = test @ weights[:-1].detach() + weights[-1].detach()
    return float((guess.argmax(1) == wanted).double().mean())
