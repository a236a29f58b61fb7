"""What methods that learn directions share: free coordinates, pairs of images, frames, the loop and its run folder.

Everything random in step t is drawn from (seed, t), so there is no state of a random generator to keep: a resumed run
repeats the uninterrupted one bit for bit on the same machine, and several processes, each of which takes its share of
the same batch, repeat one to rounding.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__, runtime
from ..codes import Codes, Space
from ..curves import Curve, advance, change_tensors, pick, tangents_of
from ..directions import Directions, standard_deviation, unit_norm
from ..errors import UserError, check_ranges
from ..files import write_json, write_text, written_beside
from ..generator import Generator
from ..method import check_layers, chosen_space, provenance
from ..reconstructor import (
    SHIFT_WEIGHT,
    Body,
    Reconstructor,
    ShiftLaw,
    confusion,
    draw_shifts,
    duplicates,
    pooled,
    reconstruction_loss,
    settled,
    unrecognised,
)

STATE = "state.pt"
STATE_FORMAT = "eigenlens.learning/1"
FREE_ON_RESUME = ("n_steps", "patience")
"""Fields of a method that a resumed run may change: none of them touches a step. With several rounds none may."""
TICK = 50
"""Steps whose mean figures are one line of `metrics.jsonl`."""
MARGIN = 0.01
"""Relative improvement of the loss below which it counts as flat."""
SAVE_SECONDS = 60.0
TRAIN_ARC = 0.75
"""Longest arc in σ of a step along a curve while learning."""
TESTS_A_DIRECTION = 40
"""Held-out pairs a direction, of the accuracies that directions carry."""
SETTLING = 30
"""Batches on which the reconstructor's norms are measured before it is tested."""
SAME = 0.9
"""|cos| of two directions from which on they count as one."""

Frame = Literal["orthonormal", "unit", "free"]


# --- where codes move, and what is seen of it -------------------------------------------------------------------------


class Scene:
    """Codes of a generator, the coordinates that may move, and pairs of images before and after.

    Args:
        generator: whose.
        space: name of the space; its own default where None. w stands for w+, whose slots `layers` picks.
        layers: the layer range that moves.
        at: the layer whose features are seen, or `image`.
        label, truncation: of the codes; by default all classes, mixed.
        precision: of the network; `auto` is bf16 where that is faster.
        seed, stream: what fixes the codes; no other seed or stream draws them.

    Raises:
        UserError: on a space, layers or a layer that the generator lacks, and where what moves is not seen.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        space: str | None,
        layers: str,
        at: str = "image",
        label: int | str | None = None,
        truncation: float = 1.0,
        precision: runtime.Precision = "auto",
        seed: int,
        stream: str,
    ) -> None:
        chosen = chosen_space(generator, space)
        self.generator, self.layers = generator, layers
        self.space = generator.space(chosen.broadcast_of) if chosen.broadcast_of else chosen
        check_layers(generator, self.space, layers)
        wider = [each for each in generator.spaces.values() if each.broadcast_of == self.space.name]
        self.host: Space = wider[0] if wider and layers != "all" else self.space
        self.mask = self.host.mask(layers).to(generator.device)  # [slots, dim]
        self.moves = self.mask.amax(0, keepdim=True) if self.space.slots == 1 else self.mask  # of a slot, or of all
        self.free = self.moves.flatten().nonzero()[:, 0]
        self.at = at if at == "image" else generator.layers[generator.layer_index(at)].name
        self.first = generator.first_layer_fed(layers, self.host)
        if at != "image" and generator.layer_index(self.at) < generator.layer_index(self.first):
            raise UserError(
                f"layers {layers!r} change nothing before {self.first}, so {self.at} shows none of it; "
                f"give `at` as {self.first} or later"
            )
        self.label = "random" if label is None and generator.label_names else label
        self.truncation = truncation
        self.precision = runtime.resolve_precision(precision, generator.device)
        self.seed, self.test_seed = (runtime.seed_apart(seed, each) for each in (stream, f"{stream}/test"))

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and resolution of what is seen."""
        if self.at == "image":
            return self.generator.channels, self.generator.resolution
        layer = self.generator.layers[self.generator.layer_index(self.at)]
        return layer.channels, layer.resolution

    def held_out(self, n: int, start: int) -> Codes:
        """Return codes `start .. start + n` of those that no step sees."""
        return self._draw(n, start, self.test_seed)

    def _draw(self, n: int, start: int, seed: int) -> Codes:
        with torch.no_grad():  # not inference_mode: what moves from them has a graph
            codes = self.generator.sample(
                n, seed=seed, start=start, space=self.space.name, truncation=self.truncation, label=self.label
            )
            if self.host is not self.space:
                codes = self.generator.lift(codes, self.host.name)
            return codes.to(self.generator.device)

    def batch(self, n: int, step: int) -> Codes:
        """Return this process's share of the `n` codes of one step."""
        mine = runtime.share(n)
        return self._draw(mine.stop - mine.start, step * n + mine.start, self.seed)

    def shaped(self, rows: Tensor) -> Tensor:
        """Return vectors of free coordinates, [k, free], as [k, slots, dim], 0 where nothing moves."""
        flat = rows.new_zeros(len(rows), self.space.slots * self.space.dim).index_copy(1, self.free, rows)
        return flat.unflatten(1, (self.space.slots, self.space.dim))

    def steps(self, rows: Tensor) -> Tensor:
        """Return what one σ along each row adds to a code, times the row's length: [k, slots, dim] of the host."""
        lengths = rows.norm(dim=1)
        units = unit_norm(self.shaped(rows / lengths[:, None]))
        steps = units * (standard_deviation(units, self.space) * lengths)[:, None, None]
        return steps * self.mask if self.host is not self.space else steps

    def measure(self, tangents: Tensor) -> Tensor:
        """Return what one σ along unit tangents at codes adds to them, [batch, slots, dim]."""
        steps = tangents * standard_deviation(tangents, self.host)[:, None, None]
        return steps * self.mask if self.host is not self.space else steps

    def see(self, codes: Codes, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is seen of codes before and after: [batch, channels, height, width] each; the first has no graph.

        What lies before the first layer that moves is computed once.
        """
        g = self.generator
        with self.mixed():
            if self.at != "image":
                with torch.no_grad():
                    before = g.features(codes, self.at)
                return before.float(), g.features(codes.with_latent(moved), self.at).float()
            with torch.no_grad():
                state = g.start(codes, self.first)
                before = g.finish(codes, state)
            return before.float(), g.finish(codes.with_latent(moved), state).float()

    def mixed(self) -> torch.autocast:
        """Return the context in which networks run."""
        return torch.autocast(self.generator.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@contextlib.contextmanager
def channels_last(network: nn.Module) -> Iterator[None]:
    """Lay the kernels of a network out channels-last, as processors like them, and back afterwards."""
    kernels = [p for p in network.parameters() if p.ndim == 4 and p.is_contiguous()]
    try:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()


# --- directions that are learned --------------------------------------------------------------------------------------


class LearnedFrame(nn.Module):
    """K vectors of `dim` coordinates, one a row, that a loss may turn.

    `orthonormal` ones are the first K columns of Q exp(S - Sᵀ), with Q a random rotation of the whole space and S
    zero but for K columns: that reaches every K-frame of the space, for K < dim too. `unit` rows have norm 1, `free`
    ones any; both start as the same frame Q.

    Args:
        n: how many, K.
        dim: coordinates of each.
        kind: see above.
        seed: of the start.
        beside: rows [m, dim] to which all of them stay at right angles.

    Source:
        Voynov & Babenko, section 4.1, where K < dim leaves all but the first K coordinates unmoved.
    """

    rotation: Tensor
    basis: Tensor | None

    def __init__(self, n: int, dim: int, kind: Frame, seed: int, beside: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("basis", None if beside is None else complement(beside))  # [dim - m, dim]
        dim = dim if self.basis is None else len(self.basis)
        if kind not in ("orthonormal", "unit", "free"):
            raise UserError(f"frame {kind!r} is not known; allowed: orthonormal, unit, free")
        if n < 1 or (n > dim and kind == "orthonormal"):
            raise UserError(
                f"{n} orthonormal directions were asked for in {dim} dimensions; give 1-{dim}, or another frame"
            )
        self.kind, self.n = kind, n
        rng = runtime.generator_for(seed, "methods/frame")
        drawn = torch.from_numpy(rng.standard_normal((max(dim, n), dim), dtype="float32"))
        if kind == "orthonormal":
            self.register_buffer("rotation", torch.linalg.qr(drawn)[0])  # [dim, dim]
            self.log = nn.Parameter(torch.zeros(dim, n))
        else:
            start = torch.linalg.qr(drawn[:dim])[0].T if n <= dim else drawn
            self.rows = nn.Parameter(torch.nn.functional.normalize(start[:n], dim=1))

    def forward(self) -> Tensor:
        """Return the vectors, [n, dim]."""
        return self._inner() if self.basis is None else self._inner() @ self.basis

    def _inner(self) -> Tensor:
        if self.kind == "orthonormal":
            square = torch.nn.functional.pad(self.log, (0, len(self.log) - self.n))
            return (self.rotation @ torch.matrix_exp(square - square.T)[:, : self.n]).T
        return self.rows if self.kind == "free" else torch.nn.functional.normalize(self.rows, dim=1)


def complement(rows: Tensor) -> Tensor:
    """Return an orthonormal basis, [dim - rank, dim], of all that is at right angles to `rows` [m, dim]."""
    _, sizes, right = torch.linalg.svd(rows.double())
    rank = int((sizes > 1e-6 * sizes.max().clamp(min=1e-30)).sum())
    return right[rank:].to(rows)


# --- the loop ---------------------------------------------------------------------------------------------------------


class Learner:
    """Networks, their optimiser, and the loss of step t.

    Args:
        modules: what learns, by name.
        loss: step -> the loss, and further figures of this process's share of the batch, [n].
        figures: their names, after `loss`.
        learning_rate, weight_decay: of Adam.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        loss: Callable[[int], tuple[Tensor, Tensor]],
        figures: Sequence[str],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> None:
        self.modules = nn.ModuleDict(modules)
        self.loss, self.figures = loss, ("loss", *figures)
        weights = list(self.modules.parameters())
        fused = weights[0].device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(weights, learning_rate, weight_decay=weight_decay, fused=fused)
        self.step = 0

    def take_step(self) -> Tensor:
        """Update all networks once; return the means of `figures` over all processes."""
        self.optimiser.zero_grad(set_to_none=True)
        loss, further = self.loss(self.step)
        loss.backward()
        figures = torch.cat([loss.detach()[None], further.detach().to(loss)])
        runtime.average([*[p.grad for p in self.modules.parameters() if p.grad is not None], figures])
        self.optimiser.step()
        self.step += 1
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {
            "step": self.step,
            "modules": self.modules.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.step = state["step"]
        self.modules.load_state_dict(state["modules"])
        self.optimiser.load_state_dict(state["optimiser"])


def seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a network whose initial weights `seed` fixes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def about_fit(method: Any, generator: Generator, seed: int) -> dict[str, Any]:
    """Return what must be the same when a run goes on, plain JSON."""
    made = provenance(method, generator, seed)
    return {"method": made.method, "arguments": dict(made.arguments), "seed": seed, "generator": dict(made.generator)}


def check_share(batch: int) -> None:
    """Raise UserError unless the processes can share a batch."""
    n = runtime.world_size()
    if batch % n:
        raise UserError(f"a batch of {batch} cannot be shared by {n} processes; give a multiple of {n}")


def of_all(share: Tensor, n: int, *, dim: int = 0) -> Tensor:
    """Return the shares of all processes along `dim`, `n` rows in all, in one tensor that leads gradients to each.

    The mean over processes of what a loss of the whole gives each of them is the gradient of one process.
    """
    if runtime.world_size() == 1:
        return share
    from torch.distributed.nn.functional import all_reduce

    shape = (*share.shape[:dim], n, *share.shape[dim + 1 :])
    places = torch.arange(n, device=share.device)[runtime.share(n)]
    return all_reduce(share.new_zeros(shape).index_copy(dim, places, share))


def learn(
    learner: Learner,
    *,
    n_steps: int,
    patience: int,
    about: Mapping[str, Any],
    run: Path | None,
    device: torch.device,
    tick: int = TICK,
    save_seconds: float = SAVE_SECONDS,
) -> None:
    """Take steps until `n_steps`, or until the loss is flat; with a run folder, from where it stands there.

    The folder holds `metrics.jsonl`, a line a tick of the mean figures; `log.txt`; `config.json`; and `last/state.pt`,
    written whole or not at all every minute and at the end.

    Args:
        learner: what learns.
        n_steps: how many steps in all.
        patience: after how many ticks without an improvement of 1 % the loss counts as flat; 0: never.
        about: what must be the same when a run goes on; see `about_fit`.
        run: the folder; None keeps nothing.
        device: where it learns.
        tick: steps a line.
        save_seconds: how often the state is saved.

    Raises:
        UserError: where the folder holds another run, or the loss becomes NaN.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    journal = _Journal(run, learner, about, n_steps)
    past = journal.resume()
    past.figures = [each.to(device) for each in past.figures]  # a state is read on the CPU
    is_first = runtime.rank() == 0
    saved = time.monotonic()
    begun = saved - past.seconds
    with runtime.stop_requested() as stop:
        while learner.step < n_steps and not has_stopped(past.losses, patience):
            if runtime.any_process(stop.is_set(), device):
                if is_first:
                    journal.save(past, time.monotonic() - begun)
                raise KeyboardInterrupt(journal.farewell())
            past.figures.append(learner.take_step())
            if learner.step % tick == 0 or learner.step == n_steps:
                means = torch.stack(past.figures).mean(0).tolist()
                if not all(map(math.isfinite, means)):
                    raise UserError(f"the loss became NaN or infinite by step {learner.step}; lower the learning rate")
                if is_first:
                    journal.tell(means, time.monotonic() - begun)
                if learner.step % tick == 0:  # a run that ends within a tick may go on
                    past.losses.append(means[0])
                    past.figures.clear()
            if is_first and time.monotonic() - saved > save_seconds:
                journal.save(past, time.monotonic() - begun)
                saved = time.monotonic()
    if is_first:
        journal.save(past, time.monotonic() - begun)
        journal.end(has_stopped(past.losses, patience))


def has_stopped(losses: Sequence[float], patience: int) -> bool:
    """Tell whether the best of the last `patience` losses does not beat the best before them by 1 %.

    Example:
        >>> has_stopped([3.0, 2.0, 2.0, 1.99], 2), has_stopped([3.0, 2.0, 2.0, 1.9], 2), has_stopped([2.0, 2.0], 0)
        (True, False, False)
    """
    if not patience or len(losses) <= patience:
        return False
    best = min(losses[:-patience])
    return min(losses[-patience:]) > best - MARGIN * abs(best)


class _Past:
    """What a run has seen: figures since the last tick, the loss of every tick, and its time."""

    def __init__(self) -> None:
        self.figures: list[Tensor] = []
        self.losses: list[float] = []
        self.seconds = 0.0


class _Journal:
    """Keep the folder of a run, and show a bar where a person watches; only the first process writes."""

    def __init__(self, run: Path | None, learner: Learner, about: Mapping[str, Any], n_steps: int) -> None:
        self.run, self.learner, self.n_steps = run, learner, n_steps
        self.about = json.loads(json.dumps(about, default=str))
        self.bar: Any = None

    def resume(self) -> _Past:
        """Load the state that the folder holds, if any, and make the folder ready."""
        past = _Past()
        if self.run is not None:
            file = self.run / "last" / STATE
            if file.exists():
                state = read_state(file, self.about)
                self.learner.load_state_dict(state)
                where = next(self.learner.modules.parameters()).device  # of the figures that are still to come
                past.figures, past.losses = [each.to(where) for each in state["figures"]], list(state["losses"])
                past.seconds = state["seconds"]
            if runtime.rank() == 0:
                write_json(self.run / "config.json", self.about | {"version": __version__}, force=True)
                self._cut_metrics()
        if runtime.rank() == 0 and sys.stderr.isatty():
            from tqdm import tqdm

            name = str(self.about["method"])
            self.bar = tqdm(
                total=self.n_steps, initial=self.learner.step, desc=name, leave=False, dynamic_ncols=True, unit="step"
            )
        return past

    def _cut_metrics(self) -> None:
        """Drop from `metrics.jsonl` what came after the state that is resumed."""
        assert self.run is not None
        metrics = self.run / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text("utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= self.learner.step]
            write_text(metrics, "".join(line + "\n" for line in kept), force=True)

    def tell(self, means: Sequence[float], seconds: float) -> None:
        """Write the mean figures since the last tick."""
        figures = dict(zip(self.learner.figures, means, strict=True))
        shown = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
        if self.bar is not None:
            self.bar.n = self.learner.step
            self.bar.set_postfix_str(shown)
        if self.run is not None:
            line = {"step": self.learner.step, "seconds": round(seconds, 2), **figures}
            with open(self.run / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            left = seconds / self.learner.step * (self.n_steps - self.learner.step)
            self._log(f"step {self.learner.step:6d}  {seconds:6.0f} s  {left:6.0f} s left  {shown}")

    def _log(self, line: str) -> None:
        if self.run is not None:
            with open(self.run / "log.txt", "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def save(self, past: _Past, seconds: float) -> None:
        """Write `last/state.pt`."""
        if self.run is None:
            return
        state = self.learner.state_dict() | {
            "format": STATE_FORMAT,
            "about": json.dumps(self.about),
            "figures": past.figures,
            "losses": past.losses,
            "seconds": seconds,
        }
        with written_beside(self.run / "last" / STATE, force=True) as beside:
            torch.save(state, beside)

    def farewell(self) -> str:
        """Say where a stopped run stands, and how to go on."""
        self._close()
        at = f"stopped at step {self.learner.step} of {self.n_steps}"
        if self.run is None:
            return f"{at}; nothing was kept, as no --run was given"
        return f"{at}; to go on, give the same command with --run {self.run}"

    def end(self, is_flat: bool) -> None:
        """Say how it ended."""
        self._close()
        why = "the loss is flat" if is_flat and self.learner.step < self.n_steps else "done"
        self._log(f"step {self.learner.step:6d}  {why}")

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off when the process was killed
        return math.inf


def read_state(file: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Read the state of a run, without unpickling objects.

    Raises:
        UserError: where it is none, or belongs to another fit; it names what differs.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of foreign bytes raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read: {reason}; give another --run") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise UserError(f"{file} is no state in format {STATE_FORMAT}; give another --run")
    then, now = (_flat(each) for each in (json.loads(state["about"]), about))
    # of several rounds, the later ones stand at right angles to what the earlier ones ended with
    free = () if "rounds" in now else FREE_ON_RESUME
    then = {"rounds": now.get("rounds")} | then  # states of version 0.1.0 do not tell
    differing = [key for key in now if then.get(key) != now[key] and key not in free]
    if differing:
        listed = ", ".join(f"{key} (was {then.get(key)}, now {now[key]})" for key in differing)
        may = f" ({', '.join(free)} may change)" if free else ""
        raise UserError(
            f"the run at {file.parent.parent} has other settings: {listed}; give the same ones{may}, or another --run"
        )
    return state


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in about.items() if key not in ("arguments", "generator")}
    return plain | dict(about["arguments"]) | {"generator": about["generator"]["weights"]}


# --- what came out ----------------------------------------------------------------------------------------------------


def twins(vectors: Tensor) -> list[tuple[int, int]]:
    """Return pairs of directions [k, ...] whose |cos| is 0.9 or more."""
    unit = torch.nn.functional.normalize(vectors.flatten(1).double(), dim=1)
    return [(i, j) for i, j in ((unit @ unit.T).abs() >= SAME).triu(1).nonzero().tolist()]


def warn_of(
    names: Sequence[str], *, dead: Sequence[int] = (), same: Sequence[tuple[int, int]] = (), run: Path | None
) -> None:
    """Warn of directions at chance, and of those that do the same; a run's `log.txt` has it too."""
    said = []
    if dead:
        said.append(f"recognised no better than by chance: {', '.join(names[i] for i in dead)}")
    if same:
        said.append(f"taken for each other: {', '.join(f'{names[i]} and {names[j]}' for i, j in same)}")
    for line in said:
        warnings.warn(line, stacklevel=3)
        if run is not None and runtime.rank() == 0:
            with open(run / "log.txt", "a", encoding="utf-8") as file:
                file.write(f"WARNING: {line}\n")


def learned_directions(
    scene: Scene, found: Tensor | Curve, method: Any, seed: int, *, importance: Tensor, fields: Mapping[str, Tensor]
) -> Directions:
    """Return what was learned as Directions, the most important first.

    Args:
        scene: where it was learned.
        found: vectors [k, free], or the fields of a curve.
        method, seed: what learned it.
        importance: of each, [k].
        fields: further figures of each, [k], by name.
    """
    order = importance.argsort(descending=True, stable=True).cpu()
    curve = None
    if isinstance(found, Tensor):
        vectors = unit_norm(scene.shaped(found.detach())).cpu()[order]
    else:
        curve = pick(change_tensors(found, lambda name, tensor: tensor.detach().cpu().float()), order.tolist())
        centre = scene.space.mean.expand(len(order), scene.space.slots, -1).float()
        vectors = unit_norm(tangents_of(curve, centre, torch.arange(len(order))))
    return Directions(
        vectors,
        scene.space.name,
        tuple(f"{method.name}-{i}" for i in range(len(vectors))),
        layers=(scene.layers,) * len(vectors),
        sigma=standard_deviation(vectors, scene.space),
        importance=importance.cpu()[order],
        fields={name: figure.float().cpu()[order] for name, figure in fields.items()},
        provenance=provenance(method, scene.generator, seed),
        curve=curve,
    )


def walked(curve: Curve, scene: Scene, latent: Tensor, which: Tensor, amount: Tensor) -> Tensor:
    """Walk latents along field `which` [batch] by `amount` σ [batch], in as few arcs of one length as may be."""
    n_arcs = math.ceil(float(amount.abs().max()) / TRAIN_ARC)
    for _ in range(n_arcs):
        latent = advance(curve, latent, which, amount / n_arcs, scene.measure)
    return latent


# --- told apart by a reconstructor ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReconstructionSettings:
    """What methods have in common that learn by a reconstructor; the defaults are those of Voynov & Babenko's code."""

    n_directions: int = 64
    """How many."""
    n_steps: int = 100_000
    """Steps; the published number is for a GPU."""
    batch: int = 32
    """Pairs a step, over all processes."""
    learning_rate: float = 1e-4
    """Of Adam, for directions and reconstructor."""
    shift: float = 6.0
    """Largest shift in σ."""
    least_shift: float = 0.5
    """Least size of a shift in σ."""
    shift_weight: float = SHIFT_WEIGHT
    """Weight of the error in how far, beside the cross-entropy of which."""
    at: str = "image"
    """What the reconstructor sees: the image, or the features of a layer."""
    see: int | None = None
    """Resolution in pixels to which images are averaged before it sees them; as they are where None."""
    noise: float = 0.0
    """Standard deviation of the noise on what the reconstructor sees; the published form has none. Changes that are
    faint beside it tell nothing, so that directions turn to where much changes."""
    body: Body = "auto"
    """Of the reconstructor: `lenet`, `resnet` (ResNet-18), or by the resolution, the LeNet up to 32 px."""
    width: float = 1.0
    """Multiplies the published channels of the body."""
    layers: str = "all"
    """Layer range in which the directions act."""
    space: str | None = None
    """Space of the directions; by default the generator's own default."""
    label: int | str | None = None
    """Class to draw codes of; by default all classes, mixed."""
    truncation: float = 1.0
    """Of the codes."""
    patience: int = 40
    """Ticks of 50 steps without an improvement of 1 % after which it ends; 0: never."""
    learn_in: runtime.Precision = "auto"
    """Of the networks: fp32, bf16, or auto, the faster one."""
    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {"n_directions": 24, "n_steps": 3000, "learning_rate": 1e-3, "see": 32, "width": 2.0},
    }
    """Settings for two cores: fewer directions and steps, larger ones, and images averaged to 32 px."""

    def check(self) -> None:
        """Raise UserError unless the settings are possible, and the processes can share a batch."""
        limits = dict.fromkeys(("learning_rate", "n_steps", "noise", "patience", "shift_weight"), (0.0, math.inf))
        check_ranges(self, limits | {"n_directions": (1.0, math.inf), "batch": (2.0, math.inf)})
        if self.see is not None and self.see < 1:
            raise UserError(f"see {self.see} is not possible; it is a number of pixels from 1")
        check_share(self.batch)

    def scene(self, generator: Generator, seed: int) -> Scene:
        """Return the codes and images of a fit."""
        return Scene(
            generator, space=self.space, layers=self.layers, at=self.at, label=self.label, truncation=self.truncation,
            precision=self.learn_in, seed=seed, stream=f"{self.name}/codes",
        )  # fmt: skip


class Mover(Protocol):
    """What moves codes along its directions: a module whose parameters are the directions."""

    def __call__(self, latent: Tensor, which: Tensor, amount: Tensor) -> Tensor:
        """Return latents [batch, slots, dim] moved along direction `which` [batch] by `amount` σ [batch]."""
        ...


class StraightMover(nn.Module):
    """Move codes along the vectors of a frame."""

    def __init__(self, scene: Scene, frame: LearnedFrame) -> None:
        super().__init__()
        self.scene, self.frame = scene, frame

    def forward(self, latent: Tensor, which: Tensor, amount: Tensor) -> Tensor:
        """Move codes; see `Mover`."""
        return latent + amount[:, None, None] * self.scene.steps(self.frame())[which]


class ReconstructionGame:
    """Directions, and the reconstructor that is to tell them apart.

    Args:
        method: the settings.
        scene: codes and images.
        mover: the directions.
        seed: of weights and shifts.
    """

    figures: ClassVar[tuple[str, ...]] = ("accuracy", "shift_error")

    def __init__(self, method: ReconstructionSettings, scene: Scene, mover: nn.Module, seed: int) -> None:
        self.method, self.scene, self.seed = method, scene, seed
        self.law = ShiftLaw(method.least_shift, method.shift)
        self.k = method.n_directions
        device = scene.generator.device
        channels, resolution = scene.shape
        self.see = method.see if method.at == "image" else None
        self.mover: Any = mover.to(device)
        self.reconstructor = seeded(
            seed,
            lambda: Reconstructor(
                self.k,
                channels=channels,
                resolution=min(resolution, self.see or resolution),
                body=method.body,
                width=method.width,
            ),
        ).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        modules = {"directions": self.mover, "reconstructor": self.reconstructor}
        self.learner = Learner(modules, self.loss, self.figures, learning_rate=method.learning_rate)

    def look(self, seen: Tensor, codes: Codes, what: str) -> Tensor:
        """Return what the reconstructor sees of images or features [batch, ...]: averaged, and with noise.

        Args:
            seen: of codes.
            codes: their latents fix the noise, so that it is the same however a batch is shared.
            what: which of the images of a code it is; each has noise of its own.
        """
        seen = pooled(seen, self.see)
        if not self.method.noise:
            return seen
        keys = codes.latent.detach().cpu().contiguous().flatten(1).numpy()
        rows = [runtime.generator_for(self.seed, f"noise/{what}", zlib.crc32(key.tobytes())) for key in keys]
        drawn = np.stack([rng.standard_normal(tuple(seen.shape[1:]), dtype="float32") for rng in rows])
        return seen + self.method.noise * torch.from_numpy(drawn).to(seen)

    def answers(self, codes: Codes, which: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the reconstructor says of codes [batch] moved along `which` by `amount` σ."""
        before, after = self.scene.see(codes, self.mover(codes.latent, which, amount))
        with self.scene.mixed():
            logits, guessed = self.reconstructor(self.look(before, codes, "before"), self.look(after, codes, "after"))
        return logits.float(), guessed.float()

    def loss(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss of one step, and accuracy and mean shift error of its batch."""
        rng = runtime.generator_for(self.seed, f"{self.method.name}/shifts", step)
        mine, device = runtime.share(self.method.batch), self.scene.generator.device
        which, amount = (each[mine].to(device) for each in draw_shifts(self.method.batch, self.k, self.law, rng))
        logits, guessed = self.answers(self.scene.batch(self.method.batch, step), which, amount)
        loss = reconstruction_loss(logits, guessed, which, amount, shift_weight=self.method.shift_weight)
        is_right = (logits.argmax(1) == which).float().mean()
        return loss, torch.stack([is_right, (guessed - amount).abs().mean()])

    def play(self, n_steps: int, run: Path | None, **settled: Any) -> None:
        """Learn until `n_steps`; `settled` are fields whose value the game has settled, such as the frame."""
        method, generator = self.method, self.scene.generator
        about = about_fit(method, generator, self.seed)
        if about["arguments"].get("rounds") == 1:
            del about["arguments"]["rounds"]  # as in methods that have none
        about["arguments"] |= {"learn_in": self.scene.precision, **settled}
        learn(self.learner, n_steps=n_steps, patience=method.patience, about=about, run=run, device=generator.device)

    @torch.no_grad()
    def test(self) -> tuple[Tensor, Tensor]:
        """Return the `confusion` on codes that no step saw, [k, k], and the mean shift error of each direction, [k]."""
        n = TESTS_A_DIRECTION * self.k
        rng = runtime.generator_for(self.seed, f"{self.method.name}/test")
        _, amount = draw_shifts(n, self.k, self.law, rng)
        which = torch.arange(n) % self.k
        counts, errors = torch.zeros(self.k, self.k), torch.zeros(self.k)
        with self.settled():
            for low, high in runtime.batches(n, max(32, self.method.batch)):
                codes = self.scene.held_out(high - low, low)
                some = which[low:high].to(self.scene.generator.device)
                logits, guessed = self.answers(codes, some, amount[low:high].to(some.device))
                counts += confusion(logits.cpu(), which[low:high])
                errors.index_add_(0, which[low:high], (guessed.cpu() - amount[low:high]).abs())
        return counts, errors / TESTS_A_DIRECTION

    def settled(self) -> contextlib.AbstractContextManager[None]:
        """Evaluate the reconstructor inside, with norms measured on the batches of the steps that would come next."""
        ahead = range(self.learner.step, self.learner.step + SETTLING)
        return settled(self.reconstructor, (partial(self.loss, step) for step in ahead))


def warn_of_confusion(found: Directions, counts: Tensor, run: Path | None) -> None:
    """Warn of directions at chance and of duplicates, given their `confusion` in their order."""
    same = sorted({*twins(found.vectors), *duplicates(counts)})
    warn_of(found.names, dead=unrecognised(counts), same=same, run=run)
