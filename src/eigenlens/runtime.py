"""Device, precision, threads, seeds, batches, progress, and the group of processes.

Codes are drawn on the CPU in fixed blocks of 1024 from (seed, stream, block) alone, so that sample i is the same on
every device, for every batch size, and whether it is drawn alone or among a million.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
BLOCK = 1024
Precision = Literal["auto", "fp32", "bf16"]
Law = Literal["normal", "uniform"]


# --- device, precision, threads ---------------------------------------------------------------------------------------


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device that `device` names; `"auto"` is the first GPU where there is one, else the CPU.

    Raises:
        UserError: where torch does not know the name, or the machine lacks the device.
    """
    import torch

    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device {str(device)!r}; allowed: auto, cpu, cuda, cuda:0, mps, ...") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {str(device)!r} was asked for, but torch sees no GPU here; use --device cpu")
    return resolved


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether bfloat16 arithmetic is faster than float32 on this device.

    On a CPU that holds where the processor multiplies bfloat16 itself (AMX or AVX-512 BF16); elsewhere it is emulated.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in _CPU_BF16_PROBES)


_CPU_BF16_PROBES = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision that `precision` means on `device`: `"auto"` is bf16 where that is the faster one.

    Raises:
        UserError: on any other word.
    """
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if precision not in ("fp32", "bf16"):
        raise UserError(f"unknown precision {precision!r}; allowed: auto, fp32, bf16")
    return precision


def set_threads(threads: int | None = None) -> int:
    """Bound the threads that torch uses: `threads`, or one a core that this process may run on.

    A pool larger than the cores that are really there costs up to ten times: each call waits for its last thread.
    """
    import torch

    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads} is not a number of threads; give 1 or more")
    torch.set_num_threads(threads or min(available_cores(), torch.get_num_threads()))
    return torch.get_num_threads()


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use: those that it is bound to, within the quota of its container.

    Args:
        quota: where Linux tells it, as `MICROSECONDS PERIOD` or `max PERIOD`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text("ascii").split()
        return max(1, min(cores, int(share) // int(period)))
    except (OSError, ValueError):  # another system, or no quota
        return cores


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory for the next tensor; it holds for the whole process.

    Otherwise glibc gives large tensors back to the system as soon as they are freed, and the page faults of getting
    them again take a tenth of a training step and a third of an image of 1024 px. Other C libraries are left alone.
    """
    trim, pad, threshold = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(threshold, 1 << 30) or mallopt(threshold, 1 << 25)  # older releases allow no more
    mallopt(trim, (1 << 31) - 1)
    mallopt(pad, 1 << 28)


# --- seeds ------------------------------------------------------------------------------------------------------------


def generator_for(seed: int, stream: str = "", index: int = 0) -> np.random.Generator:
    """Return a random generator that depends on (seed, stream, index) alone.

    Args:
        seed: any whole number from 0.
        stream: what is drawn, such as `"z"` or `"bootstrap"`: streams of one seed are independent.
        index: the block, step or process within the stream.

    Raises:
        UserError: on a negative seed.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative; seeds are whole numbers from 0")
    entropy = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index])
    return np.random.Generator(np.random.Philox(entropy))


def seed_apart(seed: int, stream: str) -> int:
    """Return a seed above 2³² for codes that no seed below draws: what was learnt from them is tested on others."""
    return (seed + 1) * 2**32 + zlib.crc32(stream.encode())


@functools.lru_cache(maxsize=4)  # neighbouring requests (a studio, a strip) fall into the same block
def _block(seed: int, stream: str, block: int, dim: int, law: Law) -> np.ndarray:
    drawn = np.empty((BLOCK, dim), np.float32)
    _draw_block(drawn, seed, stream, block, law)
    drawn.setflags(write=False)
    return drawn


def _draw_block(out: np.ndarray, seed: int, stream: str, block: int, law: Law) -> None:
    generator = generator_for(seed, stream, block)
    if law == "normal":
        generator.standard_normal(dtype=np.float32, out=out)
    else:
        generator.random(dtype=np.float32, out=out)


def draw(n: int, dim: int, *, seed: int, stream: str, start: int = 0, law: Law = "normal") -> np.ndarray:
    """Draw rows `start .. start + n` of the endless table that (seed, stream) fixes.

    Args:
        n: how many rows.
        dim: their length.
        seed, stream: what fixes the table; see `generator_for`.
        start: the first row.
        law: `"normal"`, N(0, 1), or `"uniform"` on [0, 1).

    Returns:
        float32 [n, dim]; row i is the same for every n and start.

    Example:
        >>> bool((draw(1, 4, seed=3, stream="z", start=1500) == draw(2000, 4, seed=3, stream="z")[1500]).all())
        True
    """
    if n < 0 or start < 0:
        raise UserError(f"rows {start}..{start + n} were asked for; both ends are whole numbers from 0")
    rows = np.empty((n, dim), np.float32)
    done = 0
    while done < n:
        block, offset = divmod(start + done, BLOCK)
        take = min(BLOCK - offset, n - done)
        if take == BLOCK < n:  # many blocks are drawn where they belong; remembering them would only cost memory
            _draw_block(rows[done : done + take], seed, stream, block, law)
        else:
            rows[done : done + take] = _block(seed, stream, block, dim, law)[offset : offset + take]
        done += take
    return rows


# --- batches and progress ---------------------------------------------------------------------------------------------


def batches(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut `range(n)` into (start, stop) of at most `size`."""
    for start in range(0, n, size):
        yield start, min(start + size, n)


def progress(items: Iterable[T], *, total: int | None = None, what: str = "", unit: str = "it") -> Iterable[T]:
    """Show a bar over `items` on stderr where a person watches it, on the first process only.

    Within `watching` the listener hears of each step instead.
    """
    listener = _LISTENER.get()
    if listener is not None:
        return _told(items, listener, what, len(items) if isinstance(items, Sized) else total)
    if rank() != 0 or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, unit=unit, leave=False, dynamic_ncols=True)


Listener = Callable[[str, int, "int | None"], None]
"""Called with what is done, how many steps of it are done, and how many there are; None where that is not known."""
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Report the progress of what runs in this block, on this thread, to `listener`: before each step, and after all.

    What the listener raises stops the work: that is how a long job is cancelled.

    Example:
        >>> with watching(lambda what, done, total: print(what, done, total)):
        ...     steps = list(progress(["a", "b"], what="letters"))
        letters 0 2
        letters 1 2
        letters 2 2
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def _told(items: Iterable[T], listener: Listener, what: str, total: int | None) -> Iterator[T]:
    done = 0
    for item in items:
        listener(what, done, total)
        yield item
        done += 1
    listener(what, done, total)


# --- the group of processes -------------------------------------------------------------------------------------------


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def rank() -> int:
    """Return this process's number under torchrun; 0 where there is one process, and within `alone`."""
    return 0 if _ALONE.get() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes torchrun started; 1 without it, and within `alone`."""
    return 1 if _ALONE.get() else int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def alone() -> Iterator[None]:
    """Let what runs in this block take this process for the only one: processes that share out whole pieces of work
    must not share out what is within one.

    Example:
        >>> with alone():
        ...     rank(), world_size()
        (0, 1)
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def local_rank() -> int:
    """Return this process's number on its own machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def share(batch: int) -> slice:
    """Return which rows of a batch belong to this process."""
    size = batch // world_size()
    return slice(rank() * size, (rank() + 1) * size)


def join_processes(device: str | torch.device) -> torch.device:
    """Join the processes that torchrun started, if it did, and return the device of this one.

    They are joined once and part when they end: a second group at the same address may meet what the first left there,
    and wait for good.
    """
    import torch

    where = resolve_device(device)
    if world_size() == 1:
        return where
    if where.type == "cuda":
        where = torch.device("cuda", local_rank())
        torch.cuda.set_device(where)
    if not torch.distributed.is_initialized():
        # decoding a large set keeps the others waiting
        torch.distributed.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=timedelta(hours=8))
        atexit.register(torch.distributed.destroy_process_group)
    return where


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one message."""
    import torch

    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= world_size()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(pieces, tensors, strict=True)])


def any_process(flag: bool, device: torch.device) -> bool:
    """Tell whether the flag is up on any process."""
    import torch

    if world_size() == 1:
        return flag
    flags = torch.tensor([float(flag)], device=device)
    torch.distributed.all_reduce(flags)
    return bool(flags.item())


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set; a second Ctrl-C ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
