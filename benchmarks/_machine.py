"""What a benchmark's figures depend on beside its code: the processor, its load, threads and versions."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
TELLING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
"""Instructions that decide what bfloat16 and wide vectors gain."""


def machine(*packages: str) -> dict[str, Any]:
    """Describe the machine as it is now, and the versions of Python, torch and further packages."""
    import torch

    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": instructions(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in packages},
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }


def processor() -> str:
    """Return the processor's name."""
    named = [value for name, value in _lines() if name == "model name"]
    return named[0] if named else platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Return which of `TELLING` the processor has; none where the system does not say."""
    flags = {flag for name, value in _lines() if name in ("flags", "Features") for flag in value.split()}
    return [flag for flag in TELLING if flag in flags]


def _lines() -> list[tuple[str, str]]:
    text = CPUINFO.read_text("utf-8", "replace") if CPUINFO.exists() else ""
    return [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in text.splitlines())]
