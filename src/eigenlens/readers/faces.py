"""Age, gender and smile of photographed faces, by networks that travel in an npm package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..reader import Attribute
from .graphs import read_graph

VARIABLE = "EIGENLENS_HUMAN_MODELS"
PACKAGE = "@vladmandic/human"
TESTED = "3.3.6"
DESCRIBED, EXPRESSION = "faceres.json", "emotion.json"
AGE, GENDER = "age_pred/Softmax", "gender_pred/Sigmoid"
HAPPY = 3
"""Among angry, disgusted, afraid, happy, sad, surprised and neutral."""
GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Faces:
    """Age in years, and the probabilities that a face is a man's and that it smiles, as the networks see them.

    They take the picture for one upright face, about as FFHQ and CelebA are aligned, and look for none: on anything
    else the scores mean nothing. They carry the prejudices of the photographs that they were trained on.

    Source:
        Savchenko, Efficient facial representations for age, gender and identity recognition in organizing photo albums
        using multi-output ConvNet, PeerJ Computer Science 2019 (`faceres`); Arriaga et al., Real-time convolutional
        neural networks for emotion and gender classification, ESANN 2019 (`emotion`); both as `@vladmandic/human`
        converted them. Deviation: the age is the mean of the distribution, not its peak moved towards a neighbour.
    """

    folder: str = ""
    """Holds `faceres.json` and `emotion.json` with their `.bin`; by default what EIGENLENS_HUMAN_MODELS names."""
    name: ClassVar[str] = "faces"
    package: ClassVar[str] = PACKAGE
    licence: ClassVar[str] = "MIT"

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the scores."""
        return tuple(each.name for each in self.describe())

    def describe(self) -> tuple[Attribute, ...]:
        """Say what each score means; how far it may be off was not measured here."""
        return (
            Attribute("age", "number", "other", "years"),
            Attribute("gender=male", "truth", "other"),
            Attribute("smile", "truth", "part"),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores [batch, 3] for images [batch, 1 or 3, height, width] in [-1, 1].

        Raises:
            UserError: where the models are missing, or are none.
        """
        pictures = (images.clamp(-1, 1).expand(-1, 3, -1, -1).cpu() + 1) / 2
        age, gender = read_graph(self._file(DESCRIBED)).run(255 * _resized(pictures, 224), [AGE, GENDER])
        grey = (_resized(pictures, 64) * torch.tensor(GREY)).sum(3, keepdim=True)
        (expression,) = read_graph(self._file(EXPRESSION)).run(2 * grey - 1, ["Identity"])
        years = age @ (torch.arange(age.shape[1]) + 0.5)
        return torch.stack([years, gender[:, 0], expression[:, HAPPY]], dim=1).clone()  # not an inference tensor

    def _file(self, name: str) -> Path:
        given = self.folder or os.environ.get(VARIABLE, "")
        for folder in (Path(given), Path(given) / "models"):
            if given and (folder / name).is_file():
                return folder / name
        raise UserError(
            f"the faces reader needs {name}, and {given or 'no folder'} was given; npm install {PACKAGE}@{TESTED} and "
            f"set {VARIABLE} to node_modules/{PACKAGE}"
        )


def _resized(pictures: Tensor, size: int) -> Tensor:
    """Resize [batch, 3, height, width] by area where larger, bilinearly where smaller: [batch, size, size, 3]."""
    if pictures.shape[-1] > size:
        resized = F.interpolate(pictures, size=(size, size), mode="area")
    else:
        resized = F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)
