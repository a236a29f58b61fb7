"""Axes that move house: the subspaces of one EigenGAN set into another of the same shape."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__, runtime
from .effect import image_distance, mean_changes, sample_distance, sample_for
from .errors import UserError
from .files import differing_keys, written_beside
from .generator import Generator, load_generator
from .generators.eigengan import EigenGANConfig
from .method import METHODS
from .training.eigengan import TrainConfig, train
from .training.run import STATE, load_state

FREE = ("importance_init",)
"""Entries of a shape that two generators may differ in: they fix no more than where training began."""

SETTLING = 4
"""Half-lives of the averaged weights that a tuning has at least, so that it ends where the tuning led."""


def graft(host: Generator, donor: Generator, *, layers: str = "all", with_injection: bool = False) -> Generator:
    """Return the host with U, L and μ of the donor in some layers.

    Args:
        host: keeps all else.
        donor: an EigenGAN of the same shape.
        layers: a layer range, such as `3-4`; 1 is the deepest.
        with_injection: whether the convolutions by which z enters the features come along.

    Raises:
        UserError: where the shapes differ, or no layer is chosen that carries axes.
        Unsupported: where either is no EigenGAN.
    """
    names = host.axis_weights(layers, with_injection=with_injection)
    if not names:
        raise UserError(f"layers {layers!r} carry no axes to graft; give some from 1 on, such as 3-4")
    donor.axis_weights(layers)  # raises where it has none
    check_same_shape(host, donor)
    given = donor.network.state_dict()
    tensors = {name: tensor.detach().clone() for name, tensor in host.network.state_dict().items()}
    tensors |= {name: given[name].detach().clone() for name in names}
    return type(host).from_config(host.config, tensors, name=f"{host.name}-with-{donor.name}").to(host.device)


def check_same_shape(host: Generator, donor: Generator) -> None:
    """Raise UserError unless two generators have the same shape, naming what differs."""
    keys = [key for key in differing_keys(host.config, donor.config) if key not in FREE]
    apart = [f"{key} ({host.config.get(key)} and {donor.config.get(key)})" for key in keys]
    if apart:
        raise UserError(
            f"{host.name} and {donor.name} differ in {', '.join(apart)}; axes move between generators of one shape"
        )


def scrambled(generator: Generator, *, layers: str = "all", seed: int = 0) -> Generator:
    """Return the generator with random orthonormal U in some layers, L and μ as they are: the control of a graft."""
    tensors = {name: tensor.detach().clone() for name, tensor in generator.network.state_dict().items()}
    for name in generator.axis_weights(layers):
        if name.endswith(".basis"):
            rows = tensors[name].flatten(1)  # [q, height * width * channels]
            drawn = runtime.generator_for(seed, f"graft/control/{name}").standard_normal(rows.T.shape)
            random = torch.linalg.qr(torch.from_numpy(drawn))[0].T.to(rows)
            tensors[name] = (random * rows.norm(dim=1, keepdim=True)).view_as(tensors[name])
    made = type(generator).from_config(generator.config, tensors, name=f"{generator.name}-scrambled")
    return made.to(generator.device)


@dataclass(frozen=True, eq=False)
class Kept:
    """What is left of axes in another house."""

    names: tuple[str, ...]
    """Of the axes."""
    cosine: Tensor
    """|cos| between the mean change of images along each axis in the donor and in the graft, [k]."""
    effect: Tensor
    """Length of that mean change in the graft over its length in the donor, [k]."""
    distance: float
    """Mean distance of the graft's images from the host's at the same codes, over that of two samples of the host."""


def compare_graft(
    host: Generator, donor: Generator, grafted: Generator, *, layers: str = "all", n: int = 64, seed: int = 0
) -> Kept:
    """Measure what the donor's axes still do, and how far the host's images have gone."""
    axes = METHODS["eigen"](measured=False).fit(donor)
    space = donor.space(axes.space)
    chosen = {part.name for part in space.picked(layers)}
    moved = [k for k, layer in enumerate(donor.own_axes().layers) if layer in chosen]
    before, after = (mean_changes(each, axes[moved], n=n, seed=seed).flatten(1).double() for each in (donor, grafted))
    sizes = before.norm(dim=1).clamp(min=1e-12), after.norm(dim=1).clamp(min=1e-12)
    codes = sample_for(host, axes, n, seed=seed)
    apart = float(image_distance(host.render(codes), grafted.render(codes)).mean())
    return Kept(
        axes[moved].names,
        ((before * after).sum(1) / (sizes[0] * sizes[1])).abs(),
        sizes[1] / sizes[0],
        apart / max(sample_distance(host, axes, n=n, seed=seed), 1e-12),
    )


def tune(grafted: Generator, state_file: str | Path, *, data: str | Path, kimg: float, run: str | Path) -> Generator:
    """Train a graft on, with the discriminator and the optimisers of its host's run.

    Args:
        grafted: of that host.
        state_file: the host's `state.pt`.
        data: the images that the host learnt from.
        kimg: for how many thousands of images. Of a host with a cooldown the rates begin whole, and fall again within
            them.
        run: a fresh folder for the run.

    Returns:
        The averaged generator; all its weights have learnt, those of the axes too. The average is one of the last part
        of the tuning, however short that is.

    Raises:
        UserError: where the state is none, learnt from other images, or the run's folder is in use.
    """
    if not 0 < kimg < math.inf:
        raise UserError(f"--tune {kimg} came; give thousands of images above 0, such as 1")
    place = Path(run) / "last" / STATE
    if place.exists():
        raise UserError(f"{run} holds a run already; choose another place")
    if not Path(state_file).exists():
        raise UserError(f"tuning goes on with the discriminator of the host's run, and {state_file} is not there")
    state = load_state(Path(state_file))
    weights = grafted.network.state_dict()
    averaged = state["averaged"]
    changed = [name for name in weights if not torch.equal(weights[name].cpu(), averaged[name])]
    for network in ("generator", "averaged"):
        state[network] |= {name: weights[name].cpu().clone() for name in changed}
    config = _config(json.loads(state["config"]))
    # the host's cooldown has brought its rates down to nothing, and its flat distance is no reason to stop
    config = replace(
        config,
        kimg=state["step"] * config.batch / 1000 + kimg,
        cooldown_kimg=min(config.cooldown_kimg, kimg),
        stop_when_flat=False,
        ema_half_life=min(config.ema_half_life, kimg / SETTLING),
    )
    state["config"] = json.dumps(asdict(config))  # whole: one that an older version wrote lacks what came since
    with written_beside(place) as beside:
        torch.save(state, beside)
    train(config, data=data, run=run, log=lambda line: None)
    return load_generator(Path(run) / "last")


def _config(written: Mapping[str, Any]) -> TrainConfig:
    return TrainConfig(**{**written, "model": EigenGANConfig(**written["model"])})


def provenance(host: Generator, donor: Generator, *, layers: str, with_injection: bool, tuned: float) -> dict[str, Any]:
    """Return what the file of a graft tells of where it comes from."""
    about = {"host": host.identity(), "donor": donor.identity(), "layers": layers, "with_injection": with_injection}
    return {"graft": {**about, "tuned_kimg": tuned, "version": __version__}}
