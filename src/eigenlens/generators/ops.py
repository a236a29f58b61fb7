"""What several families share: normalisation, truncation, noise inputs, the moments of mapped spaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import runtime
from ..codes import Codes, Part, Space
from ..generator import Generator

MAPPED_SAMPLES = 20_000


def pixel_norm(x: Tensor, *, dim: int = -1, eps: float = 1e-8) -> Tensor:
    """Divide by the root mean square along `dim` (Karras 2018, section 4.2)."""
    return x * (x.square().mean(dim, keepdim=True) + eps).rsqrt()


def truncated(w: Tensor, mean: Tensor, psi: float, cutoff: int | None) -> Tensor:
    """Pull w [batch, slots, dim] towards `mean` [dim] by psi, in the first `cutoff` slots (Karras 2019, appendix B)."""
    if psi == 1.0:
        return w
    pulled = mean.to(w) + psi * (w - mean.to(w))
    if cutoff is None or cutoff >= w.shape[1]:
        return pulled
    return torch.cat([pulled[:, :cutoff], w[:, cutoff:]], dim=1)


def noise_maps(seeds: Sequence[int], layer: int, resolution: int) -> Tensor:
    """Draw one noise map a row from (its seed, layer): [batch, 1, resolution, resolution]; a seed of -1 gives zeros."""
    shape = (resolution, resolution)
    rows = [
        torch.zeros(shape)
        if seed < 0
        else torch.from_numpy(runtime.generator_for(seed, f"noise/{layer}").standard_normal(shape, dtype="float32"))
        for seed in seeds
    ]
    return torch.stack(rows)[:, None]


def mapped_moments(generator: Generator, *, n: int = MAPPED_SAMPLES) -> tuple[Tensor, Tensor]:
    """Return mean [dim] and covariance [dim, dim] of w over `n` mapped codes of seed 0, labels uniform."""
    label = "random" if generator.label_names else None
    total: Tensor | float = 0.0
    products: Tensor | float = 0.0
    shift: Tensor | None = None
    with torch.inference_mode():
        for start, stop in runtime.batches(n, 4096):
            codes = generator.sample(stop - start, seed=0, start=start, space=generator.prior, label=label)
            w = generator.lift(codes.to(generator.device), "w").latent[:, 0].cpu()
            shift = w.mean(0) if shift is None else shift  # float32 products of centred rows keep their digits
            centred = w - shift
            total = total + centred.sum(0).double()
            products = products + (centred.T @ centred).double()
    assert shift is not None
    mean = total / n
    covariance = (products - n * torch.outer(mean, mean)) / (n - 1)  # type: ignore[arg-type]
    return (shift.double() + mean).float().clone(), covariance.float().clone()


def w_spaces(
    n_slots: int, dim: int, moments: Callable[[], tuple[Tensor, Tensor]], fed: Sequence[tuple[str, ...]]
) -> dict[str, Space]:
    """Return the spaces `w` and `w+` of a StyleGAN.

    Args:
        n_slots: slots of w+.
        dim: length of w.
        moments: gives mean and covariance of w; asked once, for both spaces.
        fed: for each slot the names of the layers that it feeds.
    """
    kept: list[tuple[Tensor, Tensor]] = []

    def once() -> tuple[Tensor, Tensor]:
        if not kept:
            kept.append(moments())
        return kept[0]

    every = tuple(dict.fromkeys(name for names in fed for name in names))
    parts = tuple(Part(f"slot{slot}", slot, slot, 0, dim, tuple(fed[slot])) for slot in range(n_slots))
    return {
        "w": Space("w", 1, dim, (Part("all", 0, 0, 0, dim, every),), law="mapped from z", moments=once),
        "w+": Space("w+", n_slots, dim, parts, law="mapped from z", moments=once, broadcast_of="w"),
    }


def stored_noise_off(codes: Codes) -> bool:
    """Tell whether all rows ask for no noise at all."""
    return codes.noise_seeds is not None and all(seed < 0 for seed in codes.noise_seeds)
