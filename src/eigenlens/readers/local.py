"""Features whose weights nobody may bundle: CLIP from a file of your own, and the Inception of FID."""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

CLIP_VARIABLE = "EIGENLENS_CLIP"


@dataclass(frozen=True)
class Clip:
    """Image features of CLIP, unit norm, from a local file that open_clip reads.

    Source:
        Radford et al., Learning transferable visual models from natural language supervision, ICML 2021.
    """

    path: str = ""
    """The weights (`.safetensors`); by default what the environment variable EIGENLENS_CLIP names."""
    model: str = "ViT-B-32"
    """The architecture, as open_clip calls it."""
    name: ClassVar[str] = "clip"
    package: ClassVar[str] = "open_clip_torch"
    licence: ClassVar[str] = "that of your file"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [batch, dim] for images [batch, 1 or 3, height, width] in [-1, 1]."""
        network, _ = self._open()
        size = network.visual.image_size
        size = size if isinstance(size, int) else size[0]
        x = (images.clamp(-1, 1).expand(-1, 3, -1, -1) + 1) / 2
        x = F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
        mean, std = (
            torch.tensor(getattr(network.visual, f"image_{each}")).to(x)[:, None, None] for each in ("mean", "std")
        )
        with torch.inference_mode():
            return F.normalize(network.encode_image((x - mean) / std))

    def texts(self, sentences: list[str]) -> Tensor:
        """Return features [sentences, dim], unit norm: their products with those of images are similarities."""
        network, tokenizer = self._open()
        with torch.inference_mode():
            return F.normalize(network.encode_text(tokenizer(sentences)))

    def _open(self) -> tuple[Any, Any]:
        path = self.path or os.environ.get(CLIP_VARIABLE, "")
        if not path or not os.path.isfile(path):
            raise UserError(
                f"CLIP needs weights, and {path or 'no file'} was given; set {CLIP_VARIABLE} to a .safetensors file"
            )
        if not path.endswith(".safetensors"):
            raise UserError(f"{path} may run code when opened; give CLIP weights as .safetensors")
        return _open_clip(self.model, path)


@functools.cache
def _open_clip(model: str, path: str) -> tuple[Any, Any]:
    try:
        open_clip = importlib.import_module("open_clip")
    except ImportError as error:
        raise UserError("CLIP needs open_clip, which is not installed; pip install open_clip_torch") from error
    network = open_clip.create_model(model, pretrained=path).eval().requires_grad_(False)
    return network, open_clip.get_tokenizer(model)


@dataclass(frozen=True)
class InceptionFid:
    """The 2048 features of the Inception-v3 that published FIDs rest on, by torch-fidelity.

    No other Inception is ever called FID. torch-fidelity fetches the weights when first used.
    """

    name: ClassVar[str] = "inception_fid"
    package: ClassVar[str] = "torch-fidelity"
    licence: ClassVar[str] = "Apache-2.0"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [batch, 2048] for images [batch, 1 or 3, height, width] in [-1, 1]."""
        pictures = ((images.clamp(-1, 1).expand(-1, 3, -1, -1) + 1) * 127.5).round().byte()
        with torch.inference_mode():
            return _inception()(pictures)[0]


@functools.cache
def _inception() -> Any:
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise UserError("FID needs torch-fidelity, which is not installed; pip install 'eigenlens[fid]'") from error
    return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
