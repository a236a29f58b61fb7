"""Who a face belongs to, as dlib's network sees it."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .packages import package_file

MODELS = "face_recognition_models"
SEEN = 256
"""Pixels a side at which faces are looked for; smaller images are enlarged to it."""


@dataclass(frozen=True)
class DlibFace:
    """A 128-d descriptor of the largest face in each image; two images of one person lie within about 0.6.

    NaN where no face is found.

    Source:
        King, dlib's ResNet face recognition model, 2017; the five-point landmarks align the face.
    """

    name: ClassVar[str] = "dlib_face"
    package: ClassVar[str] = MODELS
    licence: ClassVar[str] = "models CC0 or MIT; dlib-bin Boost"

    def __call__(self, images: Tensor) -> Tensor:
        """Return descriptors [batch, 128] for images [batch, 3, height, width] in [-1, 1]."""
        detector, landmarks, network = _models()
        x = images.clamp(-1, 1).expand(-1, 3, -1, -1)
        if x.shape[-1] < SEEN:
            x = F.interpolate(x, size=(SEEN, SEEN), mode="bicubic", align_corners=False).clamp(-1, 1)
        pictures = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        found = np.full((len(pictures), 128), np.nan, np.float32)
        for row, picture in enumerate(pictures):
            faces = detector(picture, 0) or detector(picture, 1)  # 1: enlarged once more, for faces below 80 px
            if len(faces):
                face = max(faces, key=lambda each: each.area())
                found[row] = network.compute_face_descriptor(picture, landmarks(picture, face))
        return torch.from_numpy(found)


@functools.cache
def _models() -> tuple[Any, Any, Any]:
    try:
        dlib = importlib.import_module("dlib")
    except ImportError as error:
        raise UserError("identity needs dlib, which is not installed; pip install --no-deps dlib-bin") from error
    file = lambda name: str(package_file(MODELS, f"{MODELS}/models/{name}"))  # noqa: E731
    return (
        dlib.get_frontal_face_detector(),
        dlib.shape_predictor(file("shape_predictor_5_face_landmarks.dat")),
        dlib.face_recognition_model_v1(file("dlib_face_recognition_resnet_model_v1.dat")),
    )
