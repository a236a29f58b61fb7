"""What one σ along a direction does to images, and the strips that show it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import runtime
from .codes import Codes
from .directions import Directions
from .generator import Generator, State

EFFECT_SAMPLES = 64
EFFECT_SEED = 0


def sample_for(
    generator: Generator, directions: Directions, n: int, *, seed: int = 0, start: int = 0, truncation: float = 1.0
) -> Codes:
    """Draw codes that these directions can move: in their space, with one slot a layer where they pick layers.

    Labels are uniform where the generator has some.
    """
    label = "random" if generator.label_names else None
    codes = generator.sample(n, seed=seed, start=start, space=directions.space, truncation=truncation, label=label)
    return directions.host(generator, codes)


def traverse(
    generator: Generator,
    codes: Codes,
    directions: Directions,
    which: int | str,
    steps: Sequence[float],
    *,
    layers: str | None = None,
    absolute: bool = False,
) -> Tensor:
    """Render every code at each of `steps` along one direction.

    What lies before the first layer that the direction feeds is computed once a code.

    Args:
        codes: [batch, ...]; lifted to the directions' space where need be.
        which: index or name of the direction.
        steps: strengths in the directions' unit.
        layers: layer range; by default the direction's own.
        absolute: whether steps are coordinates to reach instead of distances.

    Returns:
        Images [batch, steps, channels, height, width] on the CPU.
    """
    chosen = layers or directions.layers[directions.index(which)]
    codes = directions.host(generator, codes, layers=chosen)
    first = generator.first_layer_fed(_moved_parts(directions, which, codes, chosen), codes.space)
    rows = max(1, generator.batch_size // len(steps))
    pieces = []
    with torch.inference_mode():
        for start, stop in runtime.batches(len(codes), rows):
            some = codes[start:stop]
            state = generator.start(some, first)
            walked = directions.walk(some, which, steps, layers=chosen, absolute=absolute)
            for low, high in runtime.batches(len(walked), generator.batch_size):
                owners = torch.arange(low, high) // len(steps)
                pieces.append(generator.finish(walked[low:high], _rows(state, owners)).cpu())
    images = torch.cat(pieces)
    return images.unflatten(0, (len(codes), len(steps)))


def _moved_parts(directions: Directions, which: int | str, codes: Codes, layers: str) -> str:
    """Return the layer range of the parts where a direction is not zero: an axis of one layer moves that alone."""
    vector = directions.vectors[directions.index(which)].expand(codes.space.slots, -1)
    moved = [p.name for p in codes.space.picked(layers) if vector[p.slot, p.start : p.stop].any()]
    return ",".join(moved) or layers


def _rows(state: State, rows: Tensor) -> State:
    pick = lambda tensor: None if tensor is None else tensor[rows.to(tensor.device)]  # noqa: E731
    return State(state.next, pick(state.features), pick(state.image))


def rms_change(before: Tensor, after: Tensor) -> Tensor:
    """Return the root mean square pixel change of each image, in [-1, 1] units as shown (clamped): [batch]."""
    return (before.clamp(-1, 1) - after.clamp(-1, 1)).square().mean((1, 2, 3)).sqrt()


def measure_effect(
    generator: Generator, directions: Directions, *, n: int = EFFECT_SAMPLES, seed: int = EFFECT_SEED
) -> Tensor:
    """Measure the effect of each direction: RMS pixel change from -½σ to +½σ, mean of `n` samples of `seed`: [k].

    For directions in raw units σ is taken from the space all the same, so that effects compare.
    """
    codes = sample_for(generator, directions, n, seed=seed)
    directions = directions.in_sigma(generator.space(directions.space))
    effects = []
    for k in runtime.progress(range(len(directions)), what="effect"):
        images = traverse(generator, codes, directions, k, (-0.5, 0.5))
        effects.append(rms_change(images[:, 0], images[:, 1]).mean())
    return torch.stack(effects) if effects else torch.empty(0)


def calibrate(
    generator: Generator, directions: Directions, *, n: int = EFFECT_SAMPLES, seed: int = EFFECT_SEED
) -> Directions:
    """Return the directions with σ and effect measured where they are not known yet."""
    directions = directions.with_figures(sigma=directions.known_sigma(generator.space(directions.space)))
    if directions.effect.isfinite().all():
        return directions
    return directions.with_figures(effect=measure_effect(generator, directions, n=n, seed=seed))
