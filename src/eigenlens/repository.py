"""Repositories of the Hugging Face Hub, `hf://user/repo`: fetched into the Hub's own cache, or sent a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError


@dataclass(frozen=True)
class Repository:
    """An address on the Hub."""

    name: str
    """`user/repo`."""

    @classmethod
    def parse(cls, text: str) -> Repository | None:
        """Return the repository that `hf://user/repo` names; None for anything that is no such address.

        Raises:
            UserError: for `hf://` with anything else behind.
        """
        if not text.startswith("hf://"):
            return None
        name = text.removeprefix("hf://").strip("/")
        if name.count("/") != 1 or not all(name.split("/")):
            raise UserError(f"{text!r} is no address; write hf://user/repo")
        return cls(name)

    def fetch(self, patterns: Sequence[str] | None = None) -> Path:
        """Fetch the files that match some patterns, or all, and return the folder that holds them.

        Raises:
            UserError: for a missing extra, and where the Hub cannot be reached or refuses.
        """
        with self._reached():
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(self.name, allow_patterns=None if patterns is None else list(patterns)))

    def send(self, folder: Path, patterns: Sequence[str], *, private: bool = False) -> str:
        """Send the files of a folder that match some patterns, and return the repository's page.

        Args:
            folder: what is sent.
            patterns: which of its files.
            private: of a repository that is made.

        Raises:
            UserError: for a missing extra, and where the Hub cannot be reached or refuses.
        """
        with self._reached():
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(self.name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                allow_patterns=list(patterns),
                commit_message="Write a generator",
            )
        return f"https://huggingface.co/{self.name}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            raise UserError("the Hub needs the extra 'hub': pip install 'eigenlens[hub]'") from error
        except Exception as error:  # the network, the Hub and its library raise errors of many kinds
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"hf://{self.name}: {reason}; check the address and the network, and log in with: hf auth login"
            ) from error
