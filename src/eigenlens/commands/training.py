"""`train`: an EigenGAN, or a StyleGAN2 to compare it with, of one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..errors import unknown_name
from .words import option, specialised


def train(
    *,
    data: Path,
    preset: str = "cpu-64",
    run: Path | None = None,
    resume: str = "auto",
    runs: Path = Path("runs"),
    start: str | None = None,
    start_discriminator: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    compile: bool = False,
    threads: int | None = None,
    tensorboard: bool = False,
    settings: Any = None,
) -> None:
    """Train an EigenGAN, or a small StyleGAN2, on images of your own; under torchrun, on several processes.

    Args:
        data: a folder of images (nested), a zip of them, .npz, .npy, or idx files of MNIST and Fashion-MNIST.
        preset: settings that belong together, of one family; the flags below change single ones. `eigenlens list`
            names the presets.
        run: folder of the run; by default the next free one in --runs.
        resume: `auto` goes on where --run holds a state; `none` wants a fresh folder; or a state to go on from.
        runs: where new runs go.
        start: a generator whose weights a new run begins with: a name, a folder or a file. Give --generator-from-kimg
            and --warmup-kimg too, so that the discriminator comes to know it first.
        start_discriminator: a run's folder or state; with --start, its discriminator is begun with.
        device: auto, cpu, cuda, ...
        precision: bf16 is faster where the processor multiplies it itself; `auto` finds out.
        compile: compile the networks.
        threads: of the CPU.
        tensorboard: write TensorBoard's files too.
        settings: their defaults are those of the preset.
    """
    folder = _family(preset).train(
        settings,
        data=data,
        run=run,
        resume=resume,
        runs=runs,
        start=start,
        start_discriminator=start_discriminator,
        device=device,
        precision=precision,
        compile=compile,
        threads=threads,
        tensorboard=tensorboard,
    )
    print(folder)


def _family(preset: str) -> Any:
    """Return the module that trains the family of a preset.

    Raises:
        UserError: where no family has it.
    """
    from ..training import eigengan, stylegan2

    for module in (eigengan, stylegan2):
        if preset in module.PRESETS:
            return module
    raise unknown_name("preset", preset, [*eigengan.PRESETS, *stylegan2.PRESETS])


def _train_with_preset(words: list[str]) -> Any:
    preset = option(words, "--preset", "cpu-64")
    family = _family(preset)
    return specialised(train, settings=(family.TrainConfig, family.configure(preset)))


train.specialise = _train_with_preset  # type: ignore[attr-defined]
