"""`train`: an EigenGAN of one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from .words import option, specialised


def train(
    *,
    data: Path,
    preset: str = "cpu-64",
    run: Path | None = None,
    resume: str = "auto",
    runs: Path = Path("runs"),
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    compile: bool = False,
    threads: int | None = None,
    tensorboard: bool = False,
    settings: Any = None,
) -> None:
    """Train an EigenGAN on images of your own; under torchrun, on several processes.

    Args:
        data: a folder of images (nested), a zip of them, .npz, .npy, or idx files of MNIST and Fashion-MNIST.
        preset: settings that belong together; the flags below change single ones. `eigenlens list` names the presets.
        run: folder of the run; by default the next free one in --runs.
        resume: `auto` goes on where --run holds a state; `none` wants a fresh folder; or a state to go on from.
        runs: where new runs go.
        device: auto, cpu, cuda, ...
        precision: bf16 is faster where the processor multiplies it itself; `auto` finds out.
        compile: compile the networks.
        threads: of the CPU.
        tensorboard: write TensorBoard's files too.
        settings: their defaults are those of the preset.
    """
    from ..training.eigengan import train as run_training

    folder = run_training(
        settings,
        data=data,
        run=run,
        resume=resume,
        runs=runs,
        device=device,
        precision=precision,
        compile=compile,
        threads=threads,
        tensorboard=tensorboard,
    )
    print(folder)


def _train_with_preset(words: list[str]) -> Any:
    from ..training.eigengan import TrainConfig, configure

    default = configure(option(words, "--preset", "cpu-64"))
    return specialised(train, settings=(TrainConfig, default))


train.specialise = _train_with_preset  # type: ignore[attr-defined]
