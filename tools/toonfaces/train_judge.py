"""Train the toon-face reader's judge: `python tools/toonfaces/train_judge.py --data toonfaces40k.npz --run judge/`.

The judge tells whether there is a face at all. It learns rendered faces, half of them roughened as a small generator
roughens what it draws, against the pictures of `no_faces.py`; no generator's picture and no trained weight is among
either. Its threshold lies half way between faces that it never saw and no-faces made of them. Run the same command
again and it goes on where it stopped; when done, it is put beside the other networks of the reader in --out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import train_reader
from no_faces import SIZE, no_faces
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eigenlens.readers.toonfaces import ASSET, JUDGE, judge_network, judge_of

POOL = 16_000
"""Pictures that are no faces, to learn from."""
COMPONENTS = 300
"""Principal components of faces, the most that a roughened face is made of."""
SHARE = 0.01
"""Share of held-out roughened faces, and of held-out no-faces, that the ends of the gap leave outside."""


def components(faces: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [1, pixels] and the principal components [pixels, COMPONENTS] of faces [n, 3, 64, 64]."""
    flat = faces.flatten(1)
    torch.manual_seed(0)
    return flat.mean(0, keepdim=True), torch.pca_lowrank(flat, COMPONENTS)[2]


def roughened(faces: Tensor, basis: tuple[Tensor, Tensor], none: Tensor, random: torch.Generator) -> Tensor:
    """Roughen faces as small generators do what they draw; each stays a face to the eye.

    Of a third only 60 to 300 principal components are kept, most are blotched, a half is warped by up to 2 pixels, a
    third blurred, a half shows up to a seventh of another picture, and contrast and colour change a little.

    Args:
        faces: [n, 3, 64, 64].
        basis: see `components`.
        none: other pictures, of the same shape.
    """
    n, faces = len(faces), faces.clone()

    def some(share: float) -> Tensor:
        return torch.randperm(n, generator=random)[: int(share * n)]

    few, (mean, vectors) = some(1 / 3), basis
    codes = (faces[few].flatten(1) - mean) @ vectors
    kept = 60 * 5 ** torch.rand(len(few), 1, generator=random)
    faces[few] = (mean + (codes * (torch.arange(COMPONENTS) < kept)) @ vectors.T).view(-1, 3, SIZE, SIZE)
    for cells in (4, 10):
        blotched = some(1 / 2)
        field = torch.randn(len(blotched), 3, cells, cells, generator=random)
        field = F.interpolate(field, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
        faces[blotched] += 0.1 * torch.rand(len(blotched), 1, 1, 1, generator=random) * field
    bent = some(1 / 2)
    faces[bent] = train_reader.warped(faces[bent], 2 * torch.rand(len(bent), generator=random), random)
    for times in (1, 3):
        soft = some(1 / 6)
        faces[soft] = train_reader.blurred(faces[soft], times)
    mixed = some(1 / 2)
    share = torch.rand(len(mixed), 1, 1, 1, generator=random) / 7
    faces[mixed] = (1 - share) * faces[mixed] + share * none[mixed]
    contrast = 0.8 + 0.3 * torch.rand(n, 1, 1, 1, generator=random)
    return contrast * faces + 0.06 * torch.randn(n, 3, 1, 1, generator=random)


def as_faces(images: np.ndarray, rows: np.ndarray) -> Tensor:
    """Return some images uint8 [n, 64, 64, 3] as tensors."""
    return train_reader.as_seen_at(images[rows], SIZE)


def make_pool(images: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Make n no-faces, uint8 [n, 64, 64, 3], out of images."""
    random = torch.Generator().manual_seed(seed)
    rows = np.random.default_rng(seed).choice(len(images), n)
    found = [no_faces(as_faces(images, some), random) for some in np.array_split(rows, max(1, n // 800))]
    return torch.cat(found).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()


def judge_lesson(images: np.ndarray, pool: np.ndarray) -> train_reader.Lesson:
    """Teach the judge: half of a batch are faces, of which half are roughened, and half are none."""
    basis = components(as_faces(images, np.arange(4000)))

    def lesson(network: nn.Module, rows: np.ndarray, random: torch.Generator) -> Tensor:
        half, quarter = len(rows) // 2, len(rows) // 4
        none = as_faces(pool, torch.randint(len(pool), (half,), generator=random).numpy())
        faces = as_faces(images, rows[:half])
        faces = torch.cat([faces[:quarter], roughened(faces[quarter:], basis, none[quarter:], random)])
        none = none[torch.randperm(half, generator=random)]
        batch = torch.cat([train_reader.degraded(each, random) for each in (faces, none)]).clamp(-1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch.contiguous(memory_format=torch.channels_last))[:, 0]
        return F.binary_cross_entropy_with_logits(logits.float(), (torch.arange(len(batch)) < half).float())

    return lesson


def gap(judge: nn.Module, images: np.ndarray, basis: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return logits that all but `SHARE` of roughened faces exceed, and that all but `SHARE` of no-faces stay below.

    Args:
        judge: the network.
        images: faces that it never saw, uint8 [n, 64, 64, 3].
        basis: see `components`.
    """
    random = torch.Generator().manual_seed(1)
    faces, none = (as_faces(each, np.arange(len(images))) for each in (images, make_pool(images, len(images), 1)))
    faces = roughened(faces, basis, none, random)
    with torch.inference_mode():
        low, high = (
            torch.cat([judge(train_reader.degraded(some, random).clamp(-1, 1))[:, 0] for some in each.split(250)])
            for each in (none, faces)
        )
    return high.quantile(SHARE).item(), low.quantile(1 - SHARE).item()


def add_judge(out: Path, trained: Path, images: np.ndarray, basis: tuple[Tensor, Tensor]) -> None:
    """Put a trained judge, in half precision, and its threshold into a reader's folder.

    Args:
        out: the reader's folder.
        trained: weights of the judge.
        images: faces that it never saw.
        basis: see `components`.
    """
    weights = {key: value for key, value in torch.load(trained, weights_only=True).items() if "num_batches" not in key}
    tensors = {f"{JUDGE}.{key}": value.half().contiguous() for key, value in weights.items()}
    others = {k: v for k, v in load_file(out / "model.safetensors").items() if not k.startswith(f"{JUDGE}.")}
    high, low = gap(judge_of(tensors), images, basis)
    if high <= low:
        raise SystemExit(f"faces begin at {high:.2f} and no-faces end at {low:.2f}: train longer")
    config = json.loads((out / "config.json").read_text("utf-8"))
    config["format"] = "eigenlens.toonfaces_reader/3"
    config["calibration"] |= {"judge": (high + low) / 2}
    config["judge"] = {"faces_exceed": high, "no_faces_stay_below": low}
    save_file(others | tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train the judge, and put it into the reader's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="faces of render.py, 64 px")
    parser.add_argument("--run", type=Path, required=True, help="folder of the training's state")
    parser.add_argument("--out", type=Path, default=ASSET, help="folder of the reader that gets the judge")
    parser.add_argument("--epochs", type=float, default=4, help="passes over the data; half of each batch are no faces")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run.mkdir(parents=True, exist_ok=True)
    images, _, _ = train_reader.load_targets(args.data)
    seen, unseen = np.split(images, [len(images) - train_reader.HELD_OUT])
    done = args.run / "judge.pt"
    if not done.exists():
        lesson = judge_lesson(seen, make_pool(seen, POOL, 0))
        torch.manual_seed(0)
        train_reader.train(judge_network(), lesson, len(seen), args.epochs, seed=0, done=done)
    calibrating = unseen[: train_reader.HELD_OUT // 2]
    add_judge(args.out, done, calibrating, components(as_faces(seen, np.arange(4000))))


if __name__ == "__main__":
    main()
