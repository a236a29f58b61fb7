"""Photos as projection needs them: square, upright, framed as the generator's own images are.

Source:
    Karras, Laine, Aila, A Style-Based Generator Architecture, CVPR 2019, appendix A, and the authors' data set tool,
    for FFHQ's framing: a square through eyes and mouth, reflected beyond the border of the photo and blurred there.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from .errors import UserError
from .images import from_uint8, open_image

TINY = 8  # pixels; below this a side shows nothing
LANDMARKS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")
"""The five points, in this order; left and right as one sees them in the picture."""
EYES_TO_MOUTH = 1.37  # mouth over nose base, both from the eyes down: dlib's mean face


@dataclass(frozen=True)
class Photo:
    """One photo, cut for a generator."""

    name: str
    """Name of its file."""
    original: Image.Image
    """All of it, upright, RGB."""
    square: Image.Image
    """What is projected, RGB, at the generator's resolution."""
    corners: tuple[tuple[float, float], ...]
    """Corners of the square in the original, in pixels: top left, bottom left, bottom right, top right."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    def pixels(self, channels: int = 3) -> Tensor:
        """Return the square as [channels, height, width] in [-1, 1]."""
        square = self.square.convert("L") if channels == 1 else self.square
        return from_uint8(np.array(square).reshape(square.height, square.width, channels))

    def outline(self, size: int) -> Image.Image:
        """Draw the original, fitted into `size` x `size` pixels on grey, with the square outlined."""
        scale = size / max(self.original.size)
        width, height = (max(1, round(side * scale)) for side in self.original.size)
        fitted = self.original.resize((width, height))
        left, top = (size - fitted.width) // 2, (size - fitted.height) // 2
        canvas = Image.new("RGB", (size, size), (128, 128, 128))
        canvas.paste(fitted, (left, top))
        corners = [(left + x * scale, top + y * scale) for x, y in self.corners]
        # drawn inside the picture, so that an edge along its border is seen
        corners = [(min(max(x, 1), size - 2), min(max(y, 1), size - 2)) for x, y in corners]
        draw = ImageDraw.Draw(canvas)
        for colour, width in (("black", 3), ("white", 1)):
            draw.line([*corners, corners[0]], fill=colour, width=width, joint="curve")
        return canvas


def open_photo(path: str | Path, resolution: int, *, landmarks: Sequence[Sequence[float]] | None = None) -> Photo:
    """Read a photo: its largest centred square, or with landmarks the square that FFHQ cuts.

    Args:
        path: a picture in any format that `images.open_image` reads; it is not changed.
        resolution: side of the square in pixels.
        landmarks: five points (x, y) in pixels of the upright photo, in the order of `LANDMARKS`.

    Raises:
        UserError: in one line, where the file is no picture, too small or too large, or the landmarks do not fit.
    """
    path = Path(path)
    original = open_image(path)
    width, height = original.size
    if min(width, height) < TINY:
        raise UserError(f"{path} has {width} x {height} pixels; a photo needs {TINY} or more each way")
    if landmarks is not None:
        points = check_landmarks(landmarks, original.size, what=str(path))
        corners = ffhq_square(points)
        square = cut(original, corners, resolution)
    else:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        corners = _corners(left, top, left + side, top + side)
        square = original.crop((left, top, left + side, top + side))
        square = square.resize((resolution, resolution), Image.Resampling.LANCZOS)
    notes = []
    across = math.dist(corners[0], corners[1])
    if across < 0.5 * resolution:
        notes.append(f"only {across:.0f} pixels across for {resolution}; fine detail is guessed")
    return Photo(path.name, original, square, tuple(corners), tuple(notes))


def _corners(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (left, bottom), (right, bottom), (right, top)]


# --- FFHQ's framing ---------------------------------------------------------------------------------------------------


def check_landmarks(landmarks: Sequence[Sequence[float]], size: tuple[int, int], *, what: str) -> np.ndarray:
    """Return landmarks as [5, 2].

    Raises:
        UserError: where they are not five points, leave the picture, or stand where no upright face has them.
    """
    usage = f"give five points x,y: {', '.join(LANDMARKS)}"
    try:
        points = np.array(landmarks, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"the landmarks of {what} are no points; {usage}") from error
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise UserError(f"the landmarks of {what} have shape {list(points.shape)}; {usage}")
    if (points < 0).any() or (points > np.array(size)).any():
        raise UserError(f"a landmark of {what} lies outside its {size[0]} x {size[1]} pixels; {usage}")
    across, down = points[1] - points[0], (points[3] + points[4]) / 2 - (points[0] + points[1]) / 2
    if across[0] * down[1] - across[1] * down[0] <= 1:  # pixels²: the mouth below the eyes, left of them left
        raise UserError(f"the landmarks of {what} make no face: left and right are those of the picture; {usage}")
    return points


def ffhq_square(points: np.ndarray) -> list[tuple[float, float]]:
    """Return the corners of FFHQ's square around a face: top left, bottom left, bottom right, top right.

    Args:
        points: [5, 2], see `LANDMARKS`; the nose is not used.

    Source:
        Karras 2019: the half-side is the longer of twice the eyes' distance and 1.8 times that from eyes to mouth,
        along the eyes and, turned by a right angle, from eyes to mouth; the centre lies a tenth below the eyes.
    """
    eyes, mouth = (points[0] + points[1]) / 2, (points[3] + points[4]) / 2
    across, down = points[1] - points[0], mouth - eyes
    right = across + np.array([down[1], -down[0]])  # the turned way from eyes to mouth runs along the eyes
    right *= max(2.0 * np.hypot(*across), 1.8 * np.hypot(*down)) / np.hypot(*right)
    below = np.array([-right[1], right[0]])
    centre = eyes + 0.1 * down
    return [tuple(map(float, centre + a * right + b * below)) for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))]  # type: ignore[misc]


def cut(image: Image.Image, corners: Sequence[tuple[float, float]], resolution: int) -> Image.Image:
    """Cut a square of any place and turn out of a picture, without aliasing.

    Beyond the border the picture goes on as its mirror image, ever more blurred and then as its median colour.

    Args:
        image: RGB.
        corners: top left, bottom left, bottom right, top right, in pixels.
        resolution: side of the result in pixels.
    """
    quad = np.array(corners, dtype=np.float64)  # [4, 2]
    side = float(np.hypot(*(quad[1] - quad[0])))
    shrink = math.floor(side / resolution / 2)
    if shrink > 1:  # bilinear sampling below reads four pixels: what it would skip is averaged first
        size = [max(1, round(each / shrink)) for each in image.size]
        scale = np.array(size) / np.array(image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BOX)
        quad, side = quad * scale, side / shrink
    border = max(round(side * 0.1), 3)
    low = np.floor(quad.min(0)).astype(int) - border
    high = np.ceil(quad.max(0)).astype(int) + border
    (left, top), (right, bottom) = np.maximum(low, 0).tolist(), np.minimum(high, image.size).tolist()
    image = image.crop((left, top, right, bottom))
    quad = quad - np.maximum(low, 0)
    beyond = (*np.maximum(-low, 0), *np.maximum(high - np.maximum(low, 0) - image.size, 0))
    if max(beyond) > 0:
        image, shift = _extended(image, beyond, side)
        quad = quad + shift
    fine = min(4 * resolution, 4096) if side > resolution else resolution
    cut_out = image.transform(
        (fine, fine), Image.Transform.QUAD, tuple((quad + 0.5).ravel()), Image.Resampling.BILINEAR
    )
    return cut_out.resize((resolution, resolution), Image.Resampling.LANCZOS)


def _extended(image: Image.Image, beyond: tuple[int, ...], side: float) -> tuple[Image.Image, np.ndarray]:
    """Mirror a picture beyond its border and blur what is added; return it and how far its origin moved."""
    widths = np.maximum(beyond, round(side * 0.3))
    left, top, right, bottom = (int(each) for each in widths)
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="reflect")
    height, width = pixels.shape[:2]
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    inside = np.minimum(np.minimum(x / left, (width - 1 - x) / right), np.minimum(y / top, (height - 1 - y) / bottom))
    added = 1.0 - inside  # 1 at the outer border, 0 and less within the photo's own border
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(side * 0.02)), np.float64)
    mixed = pixels + (blurred - pixels) * np.clip(added * 3.0 + 1.0, 0.0, 1.0)
    mixed += (np.median(mixed, axis=(0, 1)) - mixed) * np.clip(added, 0.0, 1.0)
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8)), np.array([left, top])


# --- landmarks --------------------------------------------------------------------------------------------------------


def parse_landmarks(text: str) -> dict[str, list[list[float]]]:
    """Read landmarks: `x,y x,y x,y x,y x,y` for any photo (key `""`), or a JSON file of name -> five points.

    Raises:
        UserError: where they are neither.
    """
    usage = f"write 'x,y x,y x,y x,y x,y' ({', '.join(LANDMARKS)}), or give a .json file of name -> five points"
    if text.endswith(".json"):
        try:
            found = json.loads(Path(text).read_text("utf-8-sig"))
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise UserError(f"{text} holds no landmarks: {error}; {usage}") from error
        if not isinstance(found, dict):
            raise UserError(f"{text} holds a {type(found).__name__}; {usage}")
        return found
    try:
        points = [[float(number) for number in point.split(",")] for point in text.split()]
    except ValueError as error:
        raise UserError(f"{text!r} are no landmarks; {usage}") from error
    if len(points) != 5 or any(len(point) != 2 for point in points):
        raise UserError(f"{text!r} are no landmarks; {usage}")
    return {"": points}


def can_find_landmarks() -> bool:
    """Tell whether dlib and its five-point model are installed (the extra `faces`)."""
    return importlib.util.find_spec("dlib") is not None and _five_point_model() is not None


def find_landmarks(path: str | Path) -> list[list[float]]:
    """Find the five landmarks of the largest face of a photo, with dlib; see `LANDMARKS`.

    dlib's model gives the corners of the eyes and the base of the nose; the mouth is put where the mean face has it.

    Raises:
        UserError: where dlib is not installed, or finds no face.
    """
    model = _five_point_model()
    try:
        import dlib
    except ImportError:
        model = None
    if model is None:
        raise UserError(
            "finding faces needs the extra 'faces': pip install 'eigenlens[faces]'; or give --landmarks by hand"
        )
    pixels = np.asarray(open_image(path))
    times = 1 if min(pixels.shape[:2]) < 400 else 0  # the detector sees faces from 80 pixels
    faces = dlib.get_frontal_face_detector()(pixels, times)
    if not faces:
        raise UserError(f"no face was found in {path}; give --landmarks by hand, or --align none")
    face = max(faces, key=lambda box: box.width() * box.height())
    shape = dlib.shape_predictor(str(model))(pixels, face)
    # right eye outer, inner and left eye outer, inner of the person, sorted by x below; then the nose
    points = np.array([[shape.part(i).x, shape.part(i).y] for i in range(5)], dtype=np.float64)
    eyes = points[:4][points[:4, 0].argsort()]
    return _with_mouth(eyes[:2].mean(0), eyes[2:].mean(0), points[4]).tolist()


def _with_mouth(left: np.ndarray, right: np.ndarray, nose: np.ndarray) -> np.ndarray:
    """Add a mouth below the nose, as far as the mean face has it: [5, 2]."""
    eyes = (left + right) / 2
    mouth = eyes + EYES_TO_MOUTH * (nose - eyes)
    half = 0.4 * (right - left)
    return np.stack([left, right, nose, mouth - half, mouth + half])


def _five_point_model() -> Path | None:
    spec = importlib.util.find_spec("face_recognition_models")  # finds the folder; the package's own code is not run
    for folder in (spec.submodule_search_locations or []) if spec else []:
        model = Path(folder) / "models" / "shape_predictor_5_face_landmarks.dat"
        if model.is_file():
            return model
    return None
