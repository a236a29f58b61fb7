"""A long pass over samples that goes on where it was stopped: its sums are kept in a folder while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from . import runtime
from .errors import UserError
from .files import written_beside

SAVE_SECONDS = 60.0
FORMAT = "eigenlens.pass/1"


class Pass:
    """Count the chunks of a pass, and keep what it has summed in `run` every minute and on Ctrl-C.

    Without a folder nothing is kept and Ctrl-C works as ever. The file goes once the block ends without an error.

    Args:
        run: folder; None keeps nothing.
        name: of the file, `<name>.safetensors`.
        about: plain JSON that must be the same for a pass to go on.

    Raises:
        UserError: on entering, where the folder holds a pass of something else.

    Example:
        >>> import torch
        >>> chunks = torch.arange(6.0).split(2)
        >>> with Pass(None, "sum", {"n": 6}) as going:
        ...     total = going.tensors.get("total", torch.zeros(()))
        ...     for chunk in chunks[going.done :]:
        ...         total += chunk.sum()
        ...         going.completed(lambda: {"total": total})
        >>> float(total), going.done
        (15.0, 3)
    """

    def __init__(self, run: Path | None, name: str, about: Mapping[str, Any]) -> None:
        self.folder = run
        self.file = None if run is None else run / f"{name}.safetensors"
        self.about = json.dumps(about, sort_keys=True, default=str)
        self.done = 0
        """Chunks that need not be read again."""
        self.tensors: dict[str, Tensor] = {}
        """What was kept of them."""

    def __enter__(self) -> Pass:
        self.saved = time.monotonic()
        self.asked = runtime.stop_requested()
        if self.file is not None:
            if self.file.exists():
                self._resume(self.file)
            self.stop = self.asked.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.asked.__exit__(kind, error, trace)
            if error is None:
                self.file.unlink(missing_ok=True)

    def completed(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Note that one more chunk is done.

        Args:
            state: gives what to keep, tensors by name.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is kept.
        """
        self.done += 1
        if self.file is None:
            return
        if self.stop.is_set() or time.monotonic() - self.saved > SAVE_SECONDS:
            self._save(self.file, state())
        if self.stop.is_set():
            raise KeyboardInterrupt(f"stopped; the same command goes on from {self.file}")

    def _save(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        about = {"format": FORMAT, "about": self.about, "done": str(self.done)}
        with written_beside(file, force=True) as beside:
            save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, beside, metadata=about)
        self.saved = time.monotonic()

    def _resume(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as kept:
                about = kept.metadata() or {}
                tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118  it is no dict
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); remove it, or give another --run") from error
        if about.get("format") != FORMAT or about.get("about") != self.about:
            raise UserError(f"{file} belongs to another fit; give the settings it began with, or another --run")
        self.done, self.tensors = int(about["done"]), tensors
