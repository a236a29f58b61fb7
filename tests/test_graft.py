"""Axes in another house: what is taken is taken whole, what stays stays, and shapes that differ are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens import METHODS, UserError, load_generator
from eigenlens.cli import main
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.graft import compare_graft, graft, scrambled, tune
from eigenlens.training.eigengan import configure, train
from families import TINY


def tiny(seed: int, **changed: object) -> EigenGAN:
    settings = {"noise_dim": 8, "n_basis": 3, "base_channels": 4, "max_channels": 8, "widths": "relative"}
    torch.manual_seed(seed)
    network = EigenGANNetwork(EigenGANConfig(16, **{**settings, **changed}))  # type: ignore[arg-type]
    return EigenGAN(network, name=f"tiny{seed}")


@pytest.mark.parametrize("with_injection", [False, True])
def test_what_is_taken_is_taken_whole_and_the_rest_stays(with_injection: bool) -> None:
    host, donor = tiny(0), tiny(1)
    made = graft(host, donor, layers="2", with_injection=with_injection)
    moved = {name for name, value in made.network.state_dict().items() if name.startswith("blocks.1.")}
    taken = {name for name in moved if ".subspace." in name or (with_injection and ".inject" in name)}
    for name, value in made.network.state_dict().items():
        assert torch.equal(value, (donor if name in taken else host).network.state_dict()[name]), name
    assert not torch.equal(made.network.blocks[1].subspace.basis, host.network.blocks[1].subspace.basis)
    made.network.blocks[1].subspace.basis.data.zero_()  # the donor's weights are copied, not shared
    assert donor.network.blocks[1].subspace.basis.abs().sum() > 0


def test_layers_before_the_graft_give_the_same_features() -> None:
    host, donor = tiny(0), tiny(1)
    made = graft(host, donor, layers="2")
    codes = host.sample(3, seed=4)
    assert torch.equal(made.features(codes, "layer1"), host.features(codes, "layer1"))
    assert not torch.equal(made(codes), host(codes))


def test_a_whole_graft_keeps_the_whole_effect() -> None:
    host = tiny(0)
    twin = tiny(0)
    twin.network.blocks[1].subspace.importance.data *= 2.0
    kept = compare_graft(host, twin, graft(host, twin, layers="2"), layers="2", n=8)
    assert kept.names == ("L2D1", "L2D2", "L2D3")
    assert torch.allclose(kept.cosine, torch.ones(3).double(), atol=1e-6)
    assert torch.allclose(kept.effect, torch.ones(3).double(), atol=1e-5)
    assert kept.distance > 0.01
    assert compare_graft(host, host, graft(host, host), n=8).distance == 0
    control = compare_graft(host, twin, graft(host, scrambled(twin, seed=1)), layers="2", n=8)
    assert float(control.cosine.mean()) < 0.9


def test_the_control_is_orthonormal_and_depends_on_its_seed() -> None:
    g = tiny(0)
    one, again, other = (scrambled(g, layers="1", seed=seed) for seed in (0, 0, 1))
    rows = one.network.blocks[0].subspace.basis.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)
    assert torch.equal(rows, again.network.blocks[0].subspace.basis.flatten(1))
    assert not torch.equal(rows, other.network.blocks[0].subspace.basis.flatten(1))
    assert torch.equal(one.network.blocks[1].subspace.basis, g.network.blocks[1].subspace.basis)
    assert torch.equal(one.network.blocks[0].subspace.importance, g.network.blocks[0].subspace.importance)


def test_other_shapes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"differ in n_basis \(3 and 2\); axes move between generators of one shape"):
        graft(tiny(0), tiny(1, n_basis=2))
    with pytest.raises(UserError, match=r"orthogonality \(penalty and hard\)"):
        graft(tiny(0), tiny(1, orthogonality="hard"))
    graft(tiny(0), tiny(1, importance_init="equal"))  # says where training began, no more
    with pytest.raises(UserError, match="layers '0' carry no axes"):
        graft(tiny(0), tiny(1), layers="0")
    for name in ("a", "b"):
        (tiny(0) if name == "a" else TINY["dcgan"]()).save(tmp_path / name)
    words = ["graft", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    assert main(words) == 2
    assert "dcgan has no axes of its own among its weights" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_the_command_writes_an_ordinary_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        tiny(seed).save(tmp_path / str(seed))
    words = ["graft", str(tmp_path / "0"), str(tmp_path / "1"), "--layers", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--with-injection"]) == 0
    assert "L1D3" in capsys.readouterr().out
    made = load_generator(tmp_path / "out")
    wanted = graft(load_generator(tmp_path / "0"), load_generator(tmp_path / "1"), layers="1", with_injection=True)
    assert torch.equal(made(made.sample(2)), wanted(wanted.sample(2)))
    about = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["graft"]
    assert about["donor"]["weights"] == load_generator(tmp_path / "1").weight_hash
    assert (about["layers"], about["with_injection"], about["tuned_kimg"]) == ("1", True, 0.0)
    assert len(METHODS["eigen"]().fit(made)) == 6
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err


def test_tuning_learns_after_a_cooldown_of_the_host(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8))
    rate = 1e-3
    config = configure("tiny-16", kimg=0.016, cooldown_kimg=1.6, distance_images=0, learning_rate=rate)
    run = train(config, data=tmp_path / "data.npy", run=tmp_path / "run", precision="fp32", log=lambda line: None)
    host = load_generator(run / "last")
    made = graft(host, EigenGAN(EigenGANNetwork(config.model), name="donor"), layers="2")
    tune(made, run / "last" / "state.pt", data=tmp_path / "data.npy", kimg=0.008, run=tmp_path / "tuned")
    state = torch.load(tmp_path / "tuned" / "last" / "state.pt", weights_only=True)
    name = "blocks.1.subspace.basis"
    before = made.network.state_dict()[name]
    assert float((state["generator"][name] - before).abs().max()) > 0.5 * rate  # one step
    share = (state["averaged"][name] - before).norm() / (state["generator"][name] - before).norm()
    assert float(share) == pytest.approx(1 - 0.5**4, abs=1e-3)  # the average has followed it


def test_tuning_goes_on_with_the_hosts_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "data.npy", images)
    config = configure("tiny-16", kimg=0.016, distance_images=0, seed=1)
    run = train(config, data=tmp_path / "data.npy", run=tmp_path / "run", precision="fp32", log=lambda line: None)
    old = torch.load(run / "last" / "state.pt", weights_only=True)
    written = json.loads(old["config"])
    del written["information_weight"]  # as a version without that setting wrote it
    torch.save({**old, "config": json.dumps(written)}, run / "last" / "state.pt")
    donor = EigenGAN(EigenGANNetwork(config.model), name="donor")
    donor.save(tmp_path / "donor")
    words = ["graft", str(run / "last"), str(tmp_path / "donor"), "--layers", "2", "--tune", "0.008"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "give --data" in capsys.readouterr().err
    words += ["--data", str(tmp_path / "data.npy")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    state = torch.load(tmp_path / "out" / "tuning" / "last" / "state.pt", weights_only=True)
    assert state["step"] == 3  # two of the host's, one more
    made = load_generator(tmp_path / "out").network.blocks[1].subspace.basis
    given = donor.network.blocks[1].subspace.basis
    assert 0 < float((made - given).abs().max()) < 0.01  # one step away from the donor's
    words[1] = str(tmp_path / "donor")
    assert main([*words, "--out", str(tmp_path / "other")]) == 2
    assert "state.pt is not there" in capsys.readouterr().err
