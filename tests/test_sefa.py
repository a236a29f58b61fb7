"""SeFa against eigenvectors that are planted, or computed here from the raw tensors in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenlens.codes import Part, Space
from eigenlens.directions import Directions
from eigenlens.errors import Unsupported, UserError
from eigenlens.generator import StyleMatrix
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.methods.sefa import SeFa
from toys import Toy, linear_toy, orthonormal_rows, planted


def cosines(directions: Directions, truth: torch.Tensor) -> torch.Tensor:
    """Return |cos| of each direction with the true one of the same place."""
    found = directions.vectors.flatten(1).double()
    return (found * truth[: len(found)]).sum(1).abs() / found.norm(dim=1)


def eigengan(**changed: object) -> EigenGAN:
    config = EigenGANConfig(16, noise_dim=8, n_basis=3, base_channels=4, max_channels=8, widths="relative", **changed)
    torch.manual_seed(0)
    return EigenGAN(EigenGANNetwork(config), name="tiny")


def wide_toy(weights: dict[str, torch.Tensor]) -> Toy:
    """Make a toy with w+, where the layer in place i of `weights` is fed by slot i."""
    dim = next(iter(weights.values())).shape[1]
    w = Space("w", 1, dim)
    parts = tuple(Part(f"slot{i}", i, i, 0, dim, ("first",)) for i in range(len(weights)))
    wide = Space("w+", len(weights), dim, parts, broadcast_of="w")
    matrices = {name: StyleMatrix(weight, parts[i]) for i, (name, weight) in enumerate(weights.items())}
    image = lambda latent: latent.mean(1)[:, :3, None, None].expand(-1, -1, 4, 4)  # noqa: E731
    return Toy(image, wide, matrices=matrices, spaces={"w": w, "w+": wide})


def test_planted_singular_vectors_come_back_in_order() -> None:
    matrix, right = planted(torch.tensor([5.0, 3.0, 2.0, 1.0]), 48, 12, seed=1)
    found = SeFa(n_directions=10, normalise="none").fit(linear_toy(matrix, (3, 4, 4)))
    assert len(found) == 4  # the other eight change nothing
    assert cosines(found, right).min() > 1 - 1e-6
    assert torch.allclose(found.fields["eigenvalue"], torch.tensor([25.0, 9.0, 4.0, 1.0]), rtol=1e-5)
    assert torch.allclose(found.importance, torch.tensor([25.0, 9.0, 4.0, 1.0]) / 39, rtol=1e-5)
    assert found.names[0] == "sefa-0"
    flat = found.vectors.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("normalise", ["column", "layer", "none"])
def test_slots_of_w_are_summed_as_the_authors_do(normalise: str) -> None:
    torch.manual_seed(2)
    names = ["b4.conv1", "b4.torgb", "b8.conv0", "b8.conv1", "b8.torgb"]
    weights = {name: torch.randn(3 + 5 * i, 16) * (i + 1) for i, name in enumerate(names)}
    found = SeFa(8, layers="0,2-4", normalise=normalise, to_rgb="last").fit(wide_toy(weights))

    stacked = [weights[name].double().numpy() for name in ("b4.conv1", "b8.conv0", "b8.conv1", "b8.torgb")]
    if normalise == "layer":
        stacked = [weight / np.linalg.norm(weight) for weight in stacked]
    a = np.concatenate(stacked).T  # [dim, channels]
    if normalise == "column":
        a = a / np.linalg.norm(a, axis=0, keepdims=True)
    left, singular, _ = np.linalg.svd(a)
    assert cosines(found, torch.from_numpy(left.T)).min() > 1 - 1e-6
    assert np.allclose(found.fields["eigenvalue"], singular[:8] ** 2, rtol=1e-5)
    assert found.space == "w"
    assert found.vectors.shape == (8, 1, 16)
    assert set(found.layers) == {"0,2-4"}


@pytest.mark.parametrize(
    ("to_rgb", "kept"),
    [
        ("last", ["c", "b8.torgb"]),
        ("all", ["c", "b4.torgb", "b8.torgb"]),
        ("none", ["c"]),
        ("first", ["c", "b4.torgb"]),
    ],
)
def test_to_rgb_layers_are_kept_as_told(to_rgb: str, kept: list[str]) -> None:
    torch.manual_seed(3)
    weights = {"c": torch.randn(20, 6), "b4.torgb": torch.randn(3, 6) * 9, "b8.torgb": torch.randn(3, 6) * 5}
    found = SeFa(6, normalise="none", to_rgb=to_rgb).fit(wide_toy(weights))
    total = sum(weights[name].double().square().sum() for name in kept)
    assert torch.allclose(found.fields["eigenvalue"].double().sum(), total, rtol=1e-5)


def test_the_last_to_rgb_is_the_last_of_the_network_not_of_the_range() -> None:
    torch.manual_seed(3)
    weights = {"c": torch.randn(20, 6), "b4.torgb": torch.randn(3, 6) * 9, "b8.torgb": torch.randn(3, 6) * 5}
    found = SeFa(6, layers="0-1", normalise="none").fit(wide_toy(weights))
    assert torch.allclose(found.fields["eigenvalue"].sum(), weights["c"].square().sum(), rtol=1e-5)
    with pytest.raises(UserError, match="hold no matrix"):
        SeFa(layers="1").fit(wide_toy(weights))


def test_an_eigengan_gives_back_its_own_axes() -> None:
    g = eigengan(orthogonality="hard")
    with torch.no_grad():
        for i, subspace in enumerate(g.network.subspaces()):
            subspace.importance += torch.tensor([0.3, 0.2, 0.1]) * (i + 1)
    found = SeFa(6, normalise="none", agreement_draws=0).fit(g)
    own = g.own_axes()
    lengths = torch.cat([subspace.importance.abs() for subspace in g.network.subspaces()])
    order = lengths.argsort(descending=True)
    assert cosines(found, own.vectors.flatten(1)[order].double()).min() > 1 - 1e-5
    assert torch.allclose(found.fields["eigenvalue"].sqrt(), lengths[order], rtol=1e-4)
    assert found.space == "z"
    assert torch.isnan(found.agreement).all()


def test_parts_of_one_slot_keep_apart() -> None:
    g = eigengan()
    found = SeFa(6).fit(g)
    parts = g.spaces["z"].parts
    for vector in found.vectors[:, 0]:
        touched = [part.name for part in parts if vector[part.start : part.stop].any()]
        assert len(touched) == 1
        assert touched != ["eps"]
    assert len(SeFa(layers="layer2").fit(g)) == 3  # its three coordinates, and no more


def test_slots_that_differ_keep_apart() -> None:
    torch.manual_seed(5)
    space = Space("z", 2, 4)
    matrices = {f"block{i}": StyleMatrix(torch.randn(9, 4) * (i + 1), space.parts[i]) for i in range(2)}
    image = lambda latent: latent.mean(1)[:, :3, None, None].expand(-1, -1, 4, 4)  # noqa: E731
    found = SeFa(8, normalise="none").fit(Toy(image, space, matrices=matrices))
    assert found.vectors.shape == (8, 2, 4)
    assert ((found.vectors.abs().amax(2) > 0).sum(1) == 1).all()
    strongest = torch.linalg.svd(matrices["block1"].weight.double())[2][0]
    assert float((found.vectors[0, 1].double() @ strongest).abs()) > 1 - 1e-6


def test_agreement_tells_structure_from_chance() -> None:
    right = orthonormal_rows(32, 32, seed=6)
    torch.manual_seed(6)
    noise = torch.randn(600, 32, dtype=torch.float64)
    plain = Space("z", 1, 32)
    image = lambda latent: latent[:, 0, :3, None, None].expand(-1, -1, 4, 4)  # noqa: E731
    clear = noise * (0.5 ** torch.arange(32.0)).double() @ right
    for weight, low, high in ((clear, 0.95, 1.0), (noise, 0.0, 0.6)):
        toy = Toy(image, plain, matrices={"a": StyleMatrix(weight.float(), plain.parts[0])})
        agreement = SeFa(4, normalise="none").fit(toy, seed=1).agreement
        assert low <= agreement.min()
        assert agreement.max() <= high


def test_mistakes_are_told() -> None:
    toy = linear_toy(torch.randn(48, 12), (3, 4, 4))
    with pytest.raises(UserError, match="normalise 'rows'"):
        SeFa(normalise="rows").fit(toy)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="to_rgb 'some'"):
        SeFa(to_rgb="some").fit(toy)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="0 directions"):
        SeFa(0).fit(toy)

    class NoMatrix(Toy):
        def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
            return super(Toy, self).style_matrices(layers)

    with pytest.raises(Unsupported, match="no layer that is known to be linear"):
        SeFa().fit(NoMatrix(toy.function, toy.spaces["z"]))
