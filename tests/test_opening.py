"""Where in a file or folder the generator is found, whatever stands beside it or wraps it."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eigenlens import UserError, load_generator
from eigenlens.checkpoint import read_checkpoint
from eigenlens.generator import Generator, names_several_networks


def opened(content: Mapping[str, Any], path: Path) -> Generator:
    torch.save(content, path)
    return load_generator(path, device="cpu")


def maker(seed: int = 0) -> nn.Module:
    """Make a small DCGAN of 32 px, whose weights hang on the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.ConvTranspose2d(12, 16, 4), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh(),
        ).eval()  # fmt: skip


def judge() -> nn.Module:
    """Make a discriminator that takes the maker's images."""
    return nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


# --- several networks in one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [("generator", "discriminator"), ("G", "D"), ("netG", "critic")])
@pytest.mark.parametrize("entry", ["state_dict", None])
def test_a_generator_is_found_among_the_networks_of_one_module(
    one: str, other: str, entry: str | None, tmp_path: Path
) -> None:
    alone = opened(maker().state_dict(), tmp_path / "alone.pt")
    flat = {**under(one, maker().state_dict()), **under(other, judge().state_dict())}
    found = opened({"epoch": 3, entry: flat} if entry else flat, tmp_path / "lightning.ckpt")
    assert found.origin.entry == one
    assert len(found.layers) == 4
    assert found.weight_hash == alone.weight_hash


def test_the_averaged_of_two_generators_is_taken_in_flat_files_too(tmp_path: Path) -> None:
    averaged = opened(maker(1).state_dict(), tmp_path / "averaged.pt")
    flat = {**under("g", maker().state_dict()), **under("g_ema", maker(1).state_dict())}
    assert opened(flat, tmp_path / "both.pt").weight_hash == averaged.weight_hash


@pytest.mark.parametrize("names", [("gen_weights", "disc_weights"), ("first", "second")])
def test_networks_under_unknown_names_are_refused_instead_of_chained(names: tuple[str, str], tmp_path: Path) -> None:
    content = dict(zip(names, (maker().state_dict(), judge().state_dict()), strict=True))
    with pytest.raises(UserError, match=f"one network alone in place of {', '.join(names)}: save the generator's"):
        opened(content, tmp_path / "both.pt")


def test_a_part_called_generator_is_no_network_of_its_own(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 12)
            self.generator = maker()

    assert len(opened(Net().state_dict(), tmp_path / "net.pt").layers) == 5


def test_names_of_several_networks() -> None:
    for names in (["G", "D"], ["generator", "discriminator", "fid"], ["g", "g_ema"], ["netG", "netD"], ["x", "dis"]):
        assert names_several_networks(names), names
    for names in (["generator"], ["D"], ["fc", "gen"], ["gen_block1", "gen_block2"], ["d1", "d2"], ["main", "deconv"]):
        assert not names_several_networks(names), names


# --- folders ----------------------------------------------------------------------------------------------------------

FILES = (
    "nv_sg3t_64.pkl", "nv_sg2ada_64_fp16.pkl", "rosinality_sg1_64.model", "rosinality_sg2_64.pt", "ganzoo_pgan_64.pt",
    "genforce_pggan_64.pth", "genforce_sg1_64.pth", "genforce_sg2_64.pth", "eigengan_port_64.pt",
    "lucidrains_sg2_64.pt", "ajbrock_biggandeep_64.pth",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_one_file_is_that_file(reference: Path, name: str, tmp_path: Path) -> None:
    file = reference / "goldens" / name
    shutil.copy(file, tmp_path)
    (tmp_path / "README.md").write_text("a model card")
    alone, within = load_generator(file, device="cpu"), load_generator(tmp_path, device="cpu")
    assert within.origin.container == "folder"
    assert (within.family, within.origin.layout) == (alone.family, alone.origin.layout)
    assert within.config == alone.config
    assert within.weight_hash == alone.weight_hash


def test_a_folder_with_generator_and_discriminator_gives_the_generator(tmp_path: Path) -> None:
    alone = opened(maker().state_dict(), tmp_path / "alone.pt")
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save({"generator": maker().state_dict(), "discriminator": judge().state_dict()}, folder / "both.pt")
    assert load_generator(folder, device="cpu").weight_hash == alone.weight_hash


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["average", "compiled", "compiled average", "average of data-parallel training"])
def test_the_averaged_copy_is_taken_however_it_is_wrapped(wrapper: str, tmp_path: Path) -> None:
    averaged = opened(maker(1).state_dict(), tmp_path / "averaged.pt")
    wrapped = AveragedModel(maker(1)).state_dict()
    if wrapper == "compiled":
        wrapped = under("_orig_mod", maker(1).state_dict())
    elif wrapper == "compiled average":
        wrapped = under("_orig_mod", wrapped)
    elif wrapper == "average of data-parallel training":
        wrapped = AveragedModel(nn.DataParallel(maker(1))).state_dict()
    found = opened({"g": maker().state_dict(), "g_ema": wrapped}, tmp_path / "both.pt")
    assert found.origin.entry == "g_ema"
    assert found.weight_hash == averaged.weight_hash


# --- formats that keep no order ---------------------------------------------------------------------------------------


def test_safetensors_come_in_the_order_of_their_numbers_in_every_process(tmp_path: Path) -> None:
    layers = [f"main.{number}" for number in range(12)]
    keys = [f"{layer}.{leaf}" for layer in layers for leaf in ("bias", "weight")]
    shuffled = sorted(keys, key=lambda key: hash((key, "any order")))
    save_file(
        {key: torch.ones(2, dtype=torch.float16 if "3" in key else None) for key in shuffled},
        tmp_path / "a.safetensors",
    )
    assert list(read_checkpoint(tmp_path / "a.safetensors").content) == keys


def test_a_stack_in_safetensors_opens_as_from_torch(tmp_path: Path) -> None:
    net = nn.Sequential(*(nn.Identity() for _ in range(3)), *maker())  # the last layer has a number of two digits
    alone = opened(net.state_dict(), tmp_path / "net.pt")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    assert load_generator(tmp_path / "net.safetensors", device="cpu").weight_hash == alone.weight_hash


def test_a_stack_whose_names_tell_no_order_asks_for_another_format(tmp_path: Path) -> None:
    net = nn.Sequential(OrderedDict(zip(("fc", "up", "deconv", "image"), maker()[::3], strict=True)))
    opened(net.state_dict(), tmp_path / "net.pt")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (tmp_path / "net.safetensors", folder / "model.safetensors"):
        save_file(net.state_dict(), path)
    for path in (tmp_path / "net.safetensors", folder):
        with pytest.raises(UserError, match="This format keeps no order of layers, and their names tell none"):
            load_generator(path, device="cpu")
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.Conv2d(8, 1, 4))
    with pytest.raises(UserError) as raised:
        opened(net.state_dict(), tmp_path / "judge.pt")
    assert "keeps no order" not in str(raised.value)
