"""A Tuning: how far the weights of a generator are moved for some photos, in a file of its own.

A matrix or kernel moves by a product of two thin matrices, what has fewer axes by itself; so the file is a small part
of the generator's, which stays as it is.

Source:
    Roich, Mokady, Bermano, Cohen-Or, Pivotal Tuning for Latent-based Editing of Real Images, 2021 (arXiv 2106.05744);
    Hu et al., LoRA, 2021 (arXiv 2106.09685), for the thin factors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import UserError

TUNING_FORMAT = "eigenlens.tuning/1"
LEFT, RIGHT, WHOLE = ".left", ".right", ".whole"


@dataclass(frozen=True, eq=False)
class Tuning:
    """How far weights move, by the names that the network's state gives them."""

    tensors: Mapping[str, Tensor]
    """`NAME.left` [out, rank] and `NAME.right` [rank, rest] of each matrix or kernel; `NAME.whole` of anything else."""
    generator: Mapping[str, str]
    """Identity of the generator that it moves."""
    source: str = ""
    """What opens that generator."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, plain JSON."""

    def deltas(self) -> dict[str, Tensor]:
        """Return what is added to each weight: flat where it is a product, [out, rest]."""
        found = {key.removesuffix(WHOLE): value for key, value in self.tensors.items() if key.endswith(WHOLE)}
        for key, left in self.tensors.items():
            if key.endswith(LEFT):
                name = key.removesuffix(LEFT)
                found[name] = left @ self.tensors[name + RIGHT]
        return found

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a `.safetensors` file, which `load_generator` opens as the tuned generator."""
        from safetensors.torch import save_file

        from .files import written_beside

        header = {
            "format": TUNING_FORMAT,
            "generator": dict(self.generator),
            "source": self.source,
            "about": dict(self.about),
        }
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.tensors.items()}
        with written_beside(path, force=force) as beside:
            save_file(tensors, beside, metadata={"eigenlens": json.dumps(header)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Tuning:
        """Read what `save` wrote.

        Raises:
            UserError: where the file is none.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("eigenlens", "{}"))
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  not a dict
        except (SafetensorError, ValueError, OSError, RecursionError) as error:
            raise UserError(f"{path} is no tuning that can be read: {' '.join(str(error).split())}") from error
        is_whole = isinstance(header, dict) and header.get("format") == TUNING_FORMAT
        if not is_whole or not isinstance(header.get("generator"), dict) or not isinstance(header.get("source"), str):
            raise UserError(f"{path} is no tuning of format {TUNING_FORMAT!r}")
        for name, tensor in tensors.items():
            name, kind = name.rpartition(".")[0], name[name.rfind(".") :]
            other = tensors.get(name + (RIGHT if kind == LEFT else LEFT))
            pair = [tensor, other] if kind == LEFT else [other, tensor]
            fits = kind == WHOLE or (
                kind in (LEFT, RIGHT)
                and all(each is not None and each.ndim == 2 for each in pair)
                and pair[0].shape[1] == pair[1].shape[0]
            )
            if not fits:
                raise UserError(f"{path} is no whole tuning: {name}{kind} does not fit")
        return cls(tensors, header["generator"], header["source"], header.get("about", {}))
