"""Honest files of every container read into the values that their writers put in."""

from __future__ import annotations

import argparse
import collections
import copy
import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

import hostile
from eigenlens.checkpoint import PersistentModule, TFNetwork, read_checkpoint, state_dict
from eigenlens.errors import UserError


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def training_tree() -> dict[str, Any]:
    """Return what training scripts save beside their weights."""
    shared = torch.arange(6.0)
    weights = collections.OrderedDict(weight=torch.nn.Parameter(torch.ones(2, 3)), tied=shared)
    weights["view"] = shared[2:].view(2, 2)
    weights["turned"] = torch.arange(6.0).view(2, 3).T
    weights["empty"] = torch.zeros(0, 4)
    weights["scalar"] = torch.tensor(3.5)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64):
        weights[str(dtype)] = torch.tensor([1, 0, 1], dtype=dtype)
    weights._metadata = collections.OrderedDict(version=1)
    args = argparse.Namespace(size=64, lr=0.002, out=Path("a/b"), names=["x", None], shape=torch.Size([2, 3]))
    return {
        "g_ema": weights, "args": args, "loss": np.float64(0.25), "mean": np.arange(3.0), "seen": {1, 2},
        "pair": (1, True), "device": torch.device("cuda:1"), "dtype": torch.float16, "raw": b"\x00\xff",
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_become_plain_trees(tmp_path: Path, legacy: bool) -> None:
    tree = training_tree()
    checkpoint = read_checkpoint(written(tmp_path / "a.pt", hostile.torch_file(tree, legacy=legacy)))
    content = checkpoint.content
    assert checkpoint.container == ("torch-legacy" if legacy else "torch-zip")
    assert type(content["g_ema"]) is dict
    for name, value in tree["g_ema"].items():
        assert type(content["g_ema"][name]) is torch.Tensor
        assert content["g_ema"][name].dtype == value.dtype
        assert content["g_ema"][name].stride() == value.stride()
        assert torch.equal(content["g_ema"][name], value)
    assert content["args"] == {"size": 64, "lr": 0.002, "out": str(Path("a/b")), "names": ["x", None], "shape": (2, 3)}
    assert type(content["args"]) is dict
    assert type(content["loss"]) is float
    assert content["loss"] == 0.25
    assert torch.equal(content["mean"], torch.arange(3.0, dtype=torch.float64))
    assert (content["seen"], content["pair"], content["raw"]) == ({1, 2}, (1, True), b"\x00\xff")
    assert (content["device"], content["dtype"]) == ("cuda:1", "float16")


def test_a_tensor_of_a_gpu_and_a_bare_tensor(tmp_path: Path) -> None:
    storage = hostile.storage_id(4).replace(hostile.text("cpu"), hostile.text("cuda:0"))
    body = hostile.tensor_in(storage, 0, hostile.numbers(2, 2), hostile.numbers(2, 1))
    data = hostile.torch_zip(body, {"0": np.arange(4, dtype=np.float32).tobytes()})
    checkpoint = read_checkpoint(written(tmp_path / "a.pt", data))
    assert torch.equal(checkpoint.content[""], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert checkpoint.describe() == "torch-zip with a bare tensor [2, 2]"


def test_tensors_that_share_a_storage_still_do(tmp_path: Path) -> None:
    content = read_checkpoint(written(tmp_path / "a.pt", hostile.torch_file(training_tree()))).content["g_ema"]
    content["tied"][2] = 9.0
    assert content["view"][0, 0] == 9.0


# --- NVIDIA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nvidia_pickles_become_stubs_and_their_source_is_dropped(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    checkpoint = read_checkpoint(written(tmp_path / "a.pkl", hostile.nvidia_pickle(canary, protocol)))
    generator = checkpoint.content["G_ema"]
    assert checkpoint.container == "nvidia-pickle"
    assert type(checkpoint.content["training_set_kwargs"]) is dict
    assert isinstance(generator, PersistentModule)
    assert (generator.class_name, generator.init_args, generator.init_kwargs) == ("Generator", (), {"z_dim": 4})
    assert list(state_dict(generator)) == ["mapping.w_avg", "mapping.fc0.weight", "embed.weight"]
    assert torch.equal(state_dict(generator)["mapping.fc0.weight"], torch.arange(12.0).reshape(3, 4))
    mapping = generator["_modules"]["mapping"]
    assert mapping["_modules"]["fc0"]["weight_gain"] == 0.5
    assert type(mapping["_modules"]["fc0"]["weight_gain"]) is float
    assert torch.equal(mapping["padding"], torch.tensor([1, 2]))
    assert generator["_modules"]["embed"].class_name == "torch.nn.modules.sparse.Embedding"
    assert "module_src" not in repr(checkpoint.content)
    assert canary.name not in repr(checkpoint.content)
    assert not canary.exists()
    copied = copy.deepcopy(generator)
    assert (copied.class_name, list(copied)) == (generator.class_name, list(generator))


def test_tensorflow_pickles_become_networks_by_name(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(written(tmp_path / "a.pkl", hostile.tf_pickle()))
    network = checkpoint.content["Gs"]
    assert checkpoint.container == "nvidia-tf-pickle"
    assert isinstance(network, TFNetwork)
    assert "build_module_src" not in network
    assert (network["version"], network["static_kwargs"]) == (4, {"resolution": 64})
    assert isinstance(network["components"]["mapping"], TFNetwork)
    variables = dict(network["variables"])
    assert torch.equal(variables["G_mapping/w"], torch.arange(6.0).reshape(2, 3))  # stored column-major
    assert variables["lod"].item() == 1.5  # stored big-endian


def test_non_persistent_buffers_are_left_out() -> None:
    module = PersistentModule(
        _parameters={"a": torch.ones(1), "none": None},
        _buffers={"kept": torch.ones(2), "dropped": torch.ones(3)},
        _non_persistent_buffers_set={"dropped"},
        _modules={"none": None},
        weight_gain=torch.ones(1),
    )
    assert list(state_dict(module)) == ["a", "kept"]
    assert list(state_dict({"x": [module, 3], "version": "1"})) == ["x.0.a", "x.0.kept"]


def test_a_plain_pickle_of_arrays(tmp_path: Path) -> None:
    data = pickle.dumps({"w": np.arange(4, dtype=np.int16).reshape(2, 2), "n": 3}, 4)
    checkpoint = read_checkpoint(written(tmp_path / "a.pkl", data))
    assert checkpoint.container == "pickle"
    assert torch.equal(checkpoint.content["w"], torch.tensor([[0, 1], [2, 3]], dtype=torch.int16))


# --- safetensors and OpenVINO -----------------------------------------------------------------------------------------


def test_safetensors_with_their_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(2).bfloat16(), "empty": torch.zeros(0)}
    checkpoint = read_checkpoint(written(tmp_path / "a.safetensors", save_safetensors(tensors, {"config": "{}"})))
    assert checkpoint.container == "safetensors"
    assert checkpoint.metadata == {"config": "{}"}
    assert set(checkpoint.content) == set(tensors)
    assert all(torch.equal(checkpoint.content[name], value) for name, value in tensors.items())


def network(folder: Path, name: str = "net") -> Path:
    written(folder / f"{name}.bin", hostile.network_bin())
    return written(folder / f"{name}.xml", hostile.network_xml())


def test_openvino_networks_give_layers_constants_and_edges(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(network(tmp_path))
    content = checkpoint.content
    assert checkpoint.container == "openvino-ir"
    assert (content["name"], content["version"]) == ("Mapping", "10")
    first, second = content["layers"]
    assert first["outputs"] == [{"port": 0, "shape": [1, 4], "names": "z"}]
    assert (first["id"], first["name"], first["type"], first["tensor"]) == (0, "z", "Parameter", None)
    assert first["attributes"] == {"shape": "1, 4", "element_type": "f32"}
    assert torch.equal(second["tensor"], torch.arange(1.0, 7.0).reshape(2, 3))
    assert content["edges"] == [{"from_layer": 0, "from_port": 0, "to_layer": 1, "to_port": 2}]


def test_the_hash_of_a_network_covers_its_numbers(tmp_path: Path) -> None:
    path = network(tmp_path)
    before = read_checkpoint(path).sha256
    written(path.with_suffix(".bin"), hostile.network_bin()[:-1] + b"\1")
    assert read_checkpoint(path).sha256 != before


# --- folders and settings beside a file -------------------------------------------------------------------------------


def test_folders_of_known_families(tmp_path: Path) -> None:
    weights, other = hostile.torch_file({"w": torch.ones(2)}), hostile.torch_file({"w": torch.zeros(2)})
    hf, sngan, lucidrains, ours = (tmp_path / name for name in ("hf", "sngan", "lucidrains", "ours"))
    for folder in (hf, sngan, lucidrains, ours):
        folder.mkdir()
    written(hf / "pytorch_model.bin", weights)
    written(hf / "config.json", b'{"z_dim": 8}')
    written(sngan / "generator.pt", weights)
    written(sngan / "args.json", b'{"latent_dim": 8}')
    written(lucidrains / "model_9.pt", other)
    written(lucidrains / "model_12.pt", weights)
    written(lucidrains / ".config.json", b'{"image_size": 64}')
    written(ours / "model.safetensors", save_safetensors({"w": torch.ones(2)}, {"format": "pt"}))
    written(ours / "config.json", b'{"family": "eigengan"}')
    expected = {hf: ({"z_dim": 8}, {}), sngan: ({}, {"latent_dim": 8}), lucidrains: ({"image_size": 64}, {})}
    for folder, (config, args) in {**expected, ours: ({"family": "eigengan"}, {})}.items():
        checkpoint = read_checkpoint(folder)
        assert checkpoint.container == "folder"
        assert (checkpoint.content["config"], checkpoint.content["args"]) == (config, args)
        assert checkpoint.sidecar == config or args
        assert torch.equal(checkpoint.content["weights"]["w"], torch.ones(2)), folder
    assert read_checkpoint(ours).metadata == {"format": "pt"}
    before = read_checkpoint(hf).sha256
    written(hf / "config.json", b'{"z_dim": 9}')
    assert read_checkpoint(hf).sha256 != before


def test_a_folder_of_networks(tmp_path: Path) -> None:
    network(tmp_path, "MappingNetwork")
    network(tmp_path, "SynthesisNetwork")
    weights = read_checkpoint(tmp_path).content["weights"]
    assert {name: part["name"] for name, part in weights.items()} == {
        "MappingNetwork": "Mapping", "SynthesisNetwork": "Mapping",
    }  # fmt: skip


def test_folders_without_a_clear_choice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path)
    for name in ("a.pt", "b.pth"):
        written(tmp_path / name, hostile.torch_file({"w": torch.ones(2)}))
    with pytest.raises(UserError, match=r"holds 2 files with weights; give one of them: a\.pt, b\.pth"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weights", "settings"),
    [
        ("x.pt", "x_config.json"),
        ("x.pt", "x.config.json"),
        ("model_12.pt", ".config.json"),
        ("pytorch_model.bin", "config.json"),
        ("generator.pt", "args.json"),
    ],
)
def test_settings_beside_a_file_are_found_by_known_names_only(tmp_path: Path, weights: str, settings: str) -> None:
    path = written(tmp_path / weights, hostile.torch_file({"w": torch.ones(2)}))
    written(tmp_path / "x.json", b'{"size": 1}')
    assert read_checkpoint(path).sidecar == {}
    written(tmp_path / settings, b'{"size": 64}')
    checkpoint = read_checkpoint(path)
    assert checkpoint.sidecar == {"size": 64}
    assert list(checkpoint.content) == ["w"]
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# --- what a checkpoint says about itself ------------------------------------------------------------------------------


def test_entry_takes_the_first_name_that_is_there(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(written(tmp_path / "a.pt", hostile.torch_file({"g": 1, "g_ema": None})))
    assert checkpoint.entry("G_ema", "g_ema", "g") == ("g_ema", None)
    assert checkpoint.entry("netG") is None


def test_describe_is_one_line_whatever_the_keys(tmp_path: Path) -> None:
    tree = {"net": {f"k\n\x1b{i}" + "x" * 500: torch.zeros(i, 2) for i in range(20)}, "step": 3}
    checkpoint = read_checkpoint(written(tmp_path / "a.pt", hostile.torch_file(tree)))
    line = checkpoint.describe(limit=2)
    assert line.isprintable()
    assert len(line) < 300
    assert line.endswith("and 18 more tensors")
    assert "[1, 2]" in line
    bare = read_checkpoint(written(tmp_path / "b.pt", hostile.torch_file({"step": 3})))
    assert bare.describe() == "torch-zip without tensors; keys: step"


# --- files that other programs wrote ----------------------------------------------------------------------------------


def reference(*parts: str) -> Path:
    if "EIGENLENS_REFERENCE" not in os.environ:
        pytest.skip("EIGENLENS_REFERENCE names no folder with reference files")
    return Path(os.environ["EIGENLENS_REFERENCE"]).joinpath(*parts)


GOLDENS = [
    ("nv_sg2ada_32_resnet.pkl", "nvidia-pickle", ("G_ema",)),
    ("nv_sg2ada_64_fp16.pkl", "nvidia-pickle", ("G_ema",)),
    ("nv_sg3t_64.pkl", "nvidia-pickle", ("G_ema",)),
    ("rosinality_sg2_64.pt", "torch-zip", ("g_ema",)),
    ("rosinality_sg1_64.model", "torch-zip", ("g_running",)),
    ("genforce_pggan_64.pth", "torch-zip", ("models", "generator")),
    ("genforce_sg1_64.pth", "torch-zip", ("models", "generator")),
    ("genforce_sg2_64.pth", "torch-zip", ("models", "generator")),
    ("hf_biggan_deep_128_w16.bin", "torch-zip", ()),
    ("ajbrock_biggandeep_64.pth", "torch-zip", ()),
    ("ganzoo_pgan_64.pt", "torch-zip", ("netG",)),
    ("eigengan_port_64.pt", "torch-zip", ("g_ema",)),
    ("lucidrains_sg2_64.pt", "torch-zip", ("GAN",)),
    ("sngan_32", "folder", ("weights",)),
]


@pytest.mark.parametrize(("name", "container", "path"), GOLDENS, ids=[golden[0] for golden in GOLDENS])
def test_reference_files_give_their_writers_keys(name: str, container: str, path: tuple[str, ...]) -> None:
    file = reference("goldens", name)
    checkpoint = read_checkpoint(file)
    tree: Any = checkpoint.content
    for key in path:
        tree = tree[key]
    expected = json.loads(file.with_suffix(".json").read_text())["state_dict"]
    assert checkpoint.container == container
    assert {key: list(value.shape) for key, value in state_dict(tree).items()} == expected
    assert all(value.device.type == "cpu" for value in state_dict(tree).values())


def test_reference_stubs_know_their_constructors() -> None:
    generator = read_checkpoint(reference("goldens", "nv_sg3t_64.pkl")).content["G_ema"]
    assert generator.class_name == "Generator"
    assert generator.init_kwargs["z_dim"] == 128
    assert generator["_modules"]["synthesis"]["layer_names"][0].startswith("L0_")
    config = json.loads(reference("goldens", "lucidrains_sg2_64_config.json").read_text())
    assert read_checkpoint(reference("goldens", "lucidrains_sg2_64.pt")).sidecar == config


def test_reference_directions_and_checkpoints_read_onto_the_cpu() -> None:
    pose = read_checkpoint(reference("directions", "pose.pt")).content[""]
    assert (pose.shape, pose.device.type) == ((1, 18, 512), "cpu")
    torch.testing.assert_close(pose.norm(dim=-1), torch.ones(1, 18))
    assert read_checkpoint(reference("directions", "cars_pca.pt")).content["comp"].shape == (80, 1, 512)
    assert len(read_checkpoint(reference("checkpoints", "mnist_dcgan.pth")).content) == 23
