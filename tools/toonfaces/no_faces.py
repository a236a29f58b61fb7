"""Pictures that are no toon faces: what the reader's judge learns to turn away, and what it is measured on.

Three sorts: rendered faces taken apart until no face is left, patterns and shapes, and what networks of random form
draw with random weights. Trained weights are in none of them, and neither is any generator that the reader is used on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64
"""Pixels a side."""


def _pick(random: torch.Generator, *among: float) -> float:
    return among[int(torch.randint(len(among), (1,), generator=random))]


def _uniform(random: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=random))


def _resized(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


# --- faces taken apart ------------------------------------------------------------------------------------------------


def jumbled(faces: Tensor, random: torch.Generator) -> Tensor:
    """Cut faces into square tiles and put these in random order; half of them borrow tiles of other faces."""
    n, tile = len(faces), int(_pick(random, 4, 8, 16))
    tiles = F.unfold(faces, tile, stride=tile)  # [n, 3 * tile * tile, places]
    order = torch.rand(n, 1, tiles.shape[2], generator=random).argsort(2)
    tiles = tiles.gather(2, order.expand_as(tiles))
    half = tiles[: n // 2]
    for place in range(tiles.shape[2]):
        half[:, :, place] = half[torch.randperm(len(half), generator=random), :, place]
    return F.fold(tiles, (SIZE, SIZE), tile, stride=tile)


def scrambled(faces: Tensor, random: torch.Generator) -> Tensor:
    """Keep how much of each frequency a face has, and put random phases in place of its own."""
    spectrum = torch.fft.rfft2(faces)
    other = torch.fft.rfft2(torch.randn(len(faces), 1, SIZE, SIZE, generator=random))  # the same for all colours
    phase = other / other.abs().clamp(min=1e-9)
    phase[:, :, 0, 0] = 1.0  # the mean colour keeps its sign
    alike = spectrum / spectrum.abs().clamp(min=1e-9)
    turned = torch.where(torch.rand(len(faces), 1, 1, 1, generator=random) < 0.5, alike * phase, phase)
    turned[:, :, 0, 0] = alike[:, :, 0, 0]
    return torch.fft.irfft2(spectrum.abs() * turned, s=(SIZE, SIZE))


def overturned(faces: Tensor, random: torch.Generator) -> Tensor:
    """Turn faces by a quarter, a half or three quarters of a circle."""
    quarters = torch.randint(1, 4, (len(faces),), generator=random)
    return torch.stack([each.rot90(int(k), (1, 2)) for each, k in zip(faces, quarters, strict=True)])


def melted(faces: Tensor, random: torch.Generator) -> Tensor:
    """Move pixels by a random field of 12 to 30 pixels that changes sign several times across the picture."""
    n = len(faces)
    field = F.interpolate(torch.randn(n, 2, 7, 7, generator=random), size=(SIZE, SIZE), mode="bicubic")
    amplitude = 12 + 18 * torch.rand(n, 1, 1, 1, generator=random)
    line = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    moved = grid + (field * amplitude * 2 / SIZE).permute(0, 2, 3, 1)
    return F.grid_sample(faces, moved, padding_mode="reflection", align_corners=False)


def faded(faces: Tensor, random: torch.Generator) -> Tensor:
    """Keep 2 x 2 to 6 x 6 colours of a face, smooth or as squares."""
    small = F.interpolate(faces, size=(int(_pick(random, 2, 3, 4, 5, 6)),) * 2, mode="area")
    smooth = _resized(small, SIZE)
    squares = F.interpolate(small, size=(SIZE, SIZE), mode="nearest")
    return torch.where(torch.rand(len(faces), 1, 1, 1, generator=random) < 0.7, smooth, squares)


def enlarged(faces: Tensor, random: torch.Generator) -> Tensor:
    """Blow a corner of 6 to 16 pixels up to the whole picture."""
    found = []
    for face in faces:
        side = int(torch.randint(6, 17, (1,), generator=random))
        top, left = torch.randint(0, SIZE - side + 1, (2,), generator=random).tolist()
        found.append(_resized(face[None, :, top : top + side, left : left + side], SIZE))
    return torch.cat(found)


def drowned(faces: Tensor, random: torch.Generator) -> Tensor:
    """Leave at most a seventh of a face's contrast in noise or in what a random network draws."""
    n = len(faces)
    share = torch.rand(n, 1, 1, 1, generator=random) / 7
    noise = noises(faces, random) if _pick(random, 0, 1) else network_pictures(faces, random)
    return share * faces + (1 - share) * noise


# --- patterns ---------------------------------------------------------------------------------------------------------


def noises(faces: Tensor, random: torch.Generator) -> Tensor:
    """Noise whose power falls with frequency by a random law, grey or coloured, about a random colour."""
    n = len(faces)
    line = torch.fft.fftfreq(SIZE)
    frequency = (line[:, None].square() + torch.fft.rfftfreq(SIZE).square()).sqrt().clamp(min=1 / SIZE)
    power = 3 * torch.rand(n, 1, 1, 1, generator=random)
    noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn(n, 3, SIZE, SIZE, generator=random)) * frequency**-power)
    grey = noise[:, :1].expand_as(noise)
    noise = torch.where(torch.rand(n, 1, 1, 1, generator=random) < 0.3, grey, noise)
    return coloured(noise, random)


def waves(faces: Tensor, random: torch.Generator) -> Tensor:
    """Gradients, stripes, dots and boards: waves of up to 32 cycles, whole or cut at zero, between random colours."""
    n = len(faces)
    line = torch.arange(SIZE) / SIZE
    y, x = torch.meshgrid(line, line, indexing="ij")
    pictures = torch.zeros(n, 3, SIZE, SIZE)
    for _ in range(2):
        angle = math.pi * torch.rand(n, 1, 1, generator=random)
        cycles = 32 ** torch.rand(n, 1, 1, generator=random) - 0.7
        phase = 2 * math.pi * torch.rand(n, 3, 1, 1, generator=random)
        wave = (2 * math.pi * cycles * (x * angle.cos() + y * angle.sin()))[:, None] + phase
        wave = torch.where(torch.rand(n, 1, 1, 1, generator=random) < 0.4, wave.sin().sign(), wave.sin())
        pictures = pictures + wave * torch.randn(n, 3, 1, 1, generator=random)
    return coloured(pictures, random)


def flats(faces: Tensor, random: torch.Generator) -> Tensor:
    """One colour with a little noise or a slight gradient."""
    n = len(faces)
    line = torch.linspace(-1, 1, SIZE)
    slope = 0.2 * torch.randn(n, 3, 2, 1, 1, generator=random) * torch.rand(n, 1, 1, 1, 1, generator=random)
    flat = 2 * torch.rand(n, 3, 1, 1, generator=random) - 1 + slope[:, :, 0] * line + slope[:, :, 1] * line[:, None]
    noise = 0.2 * torch.rand(n, 1, 1, 1, generator=random).square()
    return flat + noise * torch.randn(n, 3, SIZE, SIZE, generator=random)


def shapes(faces: Tensor, random: torch.Generator) -> Tensor:
    """Discs and boxes of the colours of faces, thrown over each other."""
    n = len(faces)
    line = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    pictures = faces[:, :, 2:3, 2:3].expand(-1, -1, SIZE, SIZE).clone()
    largest = _uniform(random, 5, 30)
    for _ in range(int(_pick(random, 4, 8, 16, 40))):
        place = SIZE * torch.rand(n, 2, 1, 1, generator=random)
        turn = math.pi * torch.rand(n, 1, 1, generator=random)
        radius = 2 + largest * torch.rand(n, 2, 1, 1, generator=random)
        right, down = x - place[:, 0], y - place[:, 1]
        along = (right * turn.cos() + down * turn.sin()) / radius[:, 0]
        across = (down * turn.cos() - right * turn.sin()) / radius[:, 1]
        is_disc = torch.rand(n, 1, 1, generator=random) < 0.5
        inside = torch.where(is_disc, along.square() + across.square(), torch.maximum(along.abs(), across.abs())) < 1
        row, column = torch.randint(0, SIZE, (2,), generator=random).tolist()
        colour = faces[torch.randperm(n, generator=random), :, row, column][:, :, None, None]
        pictures = torch.where(inside[:, None], colour, pictures)
    return pictures


def coloured(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Give each picture [n, 3, h, w] a random contrast and a random mean colour."""
    n = len(pictures)
    spread = pictures.flatten(1).std(1)[:, None, None, None].clamp(min=1e-6)
    contrast = 0.05 + 0.75 * torch.rand(n, 1, 1, 1, generator=random).square()
    colour = (1.6 * torch.rand(n, 3, 1, 1, generator=random) - 0.8) * torch.rand(n, 1, 1, 1, generator=random)
    return (pictures - pictures.mean((2, 3), keepdim=True)) / spread * contrast + colour


# --- networks that learnt nothing -------------------------------------------------------------------------------------


def random_weights(shape: tuple[int, ...], law: float, random: torch.Generator) -> Tensor:
    """Draw weights by one of four laws: normal, Laplace, Student (trained weights have such tails), mostly zero."""
    normal = torch.randn(shape, generator=random)
    if law == 1:
        return normal.sign() * -torch.rand(shape, generator=random).clamp(min=1e-9).log()
    if law == 2:
        return normal / (torch.randn((3, *shape), generator=random).square().mean(0) + 0.02).sqrt()
    if law == 3:
        return normal * (torch.rand(shape, generator=random) < 0.15)
    return normal


def upsampled(x: Tensor, way: float, law: float, random: torch.Generator) -> Tensor:
    """Double the side: nearest, bilinear, a transposed convolution of 2 to 4 pixels, or channels put side by side."""
    if way == 0:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    if way == 1:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    if way == 5:
        channels = x.shape[1] // 4 * 4
        return F.pixel_shuffle(x[:, :channels], 2)
    kernel = int(way)  # 2, 3 or 4
    weight = random_weights((x.shape[1], x.shape[1], kernel, kernel), law, random)
    return F.conv_transpose2d(x, weight, stride=2, padding=kernel // 3, output_padding=kernel % 2)


ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu,
    lambda x: F.leaky_relu(x, 0.2),
    torch.tanh,
    torch.sin,
    torch.abs,
    F.gelu,
)


def evened(x: Tensor, way: float) -> Tensor:
    """Bring activations to unit size: all together, each channel over the batch, each channel of each picture, or
    each pixel.
    """
    over = {0: (0, 1, 2, 3), 1: (0, 2, 3), 2: (2, 3), 3: (1,)}[int(way)]
    if way in (1, 2):
        x = x - x.mean(over, keepdim=True)
    return x / (x.square().mean(over, keepdim=True).sqrt() + 1e-6)


def drawn_by_a_network(n: int, random: torch.Generator) -> Tensor:
    """Draw n pictures [n, 3, 64, 64] by one convolutional network of random form and random weights.

    Its pictures share a constant and differ by a random share, as those of a generator do that pays its code little or
    much heed.
    """
    side, width = int(_pick(random, 2, 4, 4, 4, 8, 16, 32, 64)), int(_pick(random, 8, 16, 32, 48))
    law, way, norm = (_pick(random, *range(4)), _pick(random, *range(6)), _pick(random, *range(4)))
    activation = ACTIVATIONS[int(_pick(random, *range(len(ACTIVATIONS))))]
    kernel, depth = int(_pick(random, 1, 3, 3, 3, 5)), int(_pick(random, 1, 2))
    padding = ("constant", "reflect", "circular")[int(_pick(random, 0, 0, 0, 1, 2))]
    own, offset, gain = _uniform(random, 0.05, 1.5), _uniform(random, 0, 1.5), _uniform(random, 0.5, 3)
    x = torch.randn(1, width, side, side, generator=random) + own * torch.randn(n, width, side, side, generator=random)

    def convolved(x: Tensor, after: int, size: int) -> Tensor:
        weight = random_weights((after, x.shape[1], size, size), law, random)
        reach = min(size // 2, x.shape[-1] - 1)
        mode = padding if reach == size // 2 else "constant"
        return F.conv2d(F.pad(x, (size // 2,) * 4, mode=mode), weight)

    while True:
        for _ in range(depth):
            x = evened(convolved(x, width, kernel), norm)
            x = x + offset * torch.randn(1, width, 1, 1, generator=random)
            if offset > 1:  # what a layer adds at each place, whatever the code
                x = x + (offset - 1) * torch.randn(1, width, *x.shape[2:], generator=random)
            x = activation(gain * x)
        if x.shape[-1] == SIZE:
            break
        x = upsampled(x, way, law, random)
        width = max(8, width // 2)
    pictures = convolved(x, 3, int(_pick(random, 1, 3, 7)))
    return bounded(pictures, random)


def bounded(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Bring all pictures of one network into range together: a random contrast, random colours, cut or bent."""
    pictures = (pictures - pictures.mean()) / (pictures.std() + 1e-6)
    own_mean = pictures.mean((0, 2, 3), keepdim=True)
    pictures = pictures - own_mean * _uniform(random, 0, 1)
    pictures = pictures * _uniform(random, 0.1, 1.2) + 0.6 * torch.randn(1, 3, 1, 1, generator=random)
    return pictures.tanh() if _pick(random, 0, 1) else pictures.clamp(-1, 1)


def network_pictures(faces: Tensor, random: torch.Generator) -> Tensor:
    """Draw as many pictures as there are faces, eight by each random network."""
    parts = [drawn_by_a_network(8, random) for _ in range(math.ceil(len(faces) / 8))]
    return torch.cat(parts)[: len(faces)]


KINDS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "tiles in random order": jumbled,
    "random phases": scrambled,
    "turned by quarters": overturned,
    "warped 12-30 px": melted,
    "6 x 6 colours or fewer": faded,
    "a corner, enlarged": enlarged,
    "a seventh in noise": drowned,
    "noise of any colour": noises,
    "waves and boards": waves,
    "one colour or nearly": flats,
    "discs and boxes": shapes,
    "random networks": network_pictures,
}
"""Kind -> faces [n, 3, 64, 64] in [-1, 1] and random numbers -> as many pictures that are none."""


def no_faces(faces: Tensor, random: torch.Generator) -> Tensor:
    """Make pictures that are no faces out of faces [n, 3, 64, 64]: half by random networks, the rest of all kinds."""
    half = len(faces) // 2
    others = [each for name, each in KINDS.items() if name != "random networks"]
    pictures = [network_pictures(faces[:half], random)]
    for some, kind in zip(faces[half:].chunk(len(others)), others, strict=False):
        pictures += [kind(part, random) for part in some.split(16)]
    return torch.cat(pictures).clamp(-1, 1)
