"""Work that takes longer than a request: it runs beside the frames, tells how far it is, and can be cancelled."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .. import runtime
from ..errors import UserError

MOST_WAITING = 8
MOST_KEPT = 64


class Cancelled(Exception):
    """The person changed their mind."""


@dataclass(eq=False)
class Job:
    """One piece of work."""

    id: str
    """Names it in requests."""
    kind: str
    """What it is, for people."""
    state: str = "waiting"
    """waiting, running, done, failed or cancelled."""
    what: str = ""
    """The step that runs."""
    done: int = 0
    """How much of the step is done."""
    total: int | None = None
    """How much there is of it; None where that is not known."""
    seconds: float = 0.0
    """Since it began."""
    result: dict[str, Any] | None = None
    """What it gave."""
    error: str = ""
    """Why it failed."""
    picture: bytes | None = None
    """The latest picture of how it stands."""
    version: int = 0
    """Counts the pictures."""
    wish: threading.Event = field(default_factory=threading.Event)
    """Set where it is to stop."""
    stops_itself: bool = False
    """Whether the work looks at `wish` itself, to keep what it has so far."""
    _began: float = 0.0

    def report(self, what: str, done: int, total: int | None) -> None:
        """Note how far it is; stop it where that is wished."""
        if self.wish.is_set() and not self.stops_itself:
            raise Cancelled
        self.what, self.done, self.total, self.seconds = what, done, total, time.monotonic() - self._began

    def show(self, picture: bytes) -> None:
        """Note a picture of how it stands."""
        self.picture, self.version = picture, self.version + 1

    def to_json(self) -> dict[str, Any]:
        """Return what the page reads of it."""
        shown = ("id", "kind", "state", "what", "done", "total", "seconds", "result", "error", "version")
        return {name: getattr(self, name) for name in shown}


class Jobs:
    """A queue that does one piece of work at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="studio-job")
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def start(self, kind: str, work: Callable[[Job], dict[str, Any]]) -> Job:
        """Queue a piece of work.

        Raises:
            UserError: where too many wait.
        """
        with self._lock:
            if sum(job.state == "waiting" for job in self._jobs.values()) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} pieces of work are waiting already; cancel one, or wait")
            job = Job(str(next(self._numbers)), kind)
            self._jobs[job.id] = job
            for old in [each for each in self._jobs.values() if each.state not in ("waiting", "running")]:
                if len(self._jobs) <= MOST_KEPT:
                    break
                del self._jobs[old.id]
        self._pool.submit(self._run, job, work)
        return job

    def _run(self, job: Job, work: Callable[[Job], dict[str, Any]]) -> None:
        job._began = time.monotonic()
        try:
            if job.wish.is_set():
                raise Cancelled
            job.state = "running"
            with runtime.watching(job.report):
                job.result = work(job)
            job.seconds = time.monotonic() - job._began
            job.state = "done"
        except Cancelled:
            job.state = "cancelled"
        except UserError as error:
            job.error, job.state = str(error), "failed"
        except Exception as error:  # a fault of one method must not take the studio down; the person reads what it was
            job.error, job.state = f"{type(error).__name__}: {error}", "failed"

    def __getitem__(self, number: str) -> Job:
        """Return a job.

        Raises:
            UserError: where there is none of this number (any more).
        """
        if number not in self._jobs:
            raise UserError(f"there is no job {number[:20]!r}; it may belong to an earlier run of the server")
        return self._jobs[number]

    def cancel(self, number: str) -> Job:
        """Ask a job to stop; it does at its next step."""
        job = self[number]
        job.wish.set()
        if job.state == "waiting":
            job.state = "cancelled"
        return job

    def close(self) -> None:
        """Stop all of them."""
        for job in list(self._jobs.values()):
            job.wish.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
