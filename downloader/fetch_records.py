"""What a fetch is told, and what it brings about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from downloader.errors import DownloaderError
from downloader.polling import PollOptions
from downloader.publish import ManifestFile
from downloader.transfer import TransferOptions
from downloader.verify import Level

__all__ = ["FetchOptions", "FetchReport", "FollowedFailure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How a task is fetched; fetches that run side by side share one of these."""

    poll: PollOptions = field(default_factory=PollOptions)
    transfer: TransferOptions = field(default_factory=TransferOptions)
    verify: Level = "full"
    checksums: Sequence[str] = ()  # also write SHA256SUMS, MD5SUMS


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReport:
    """What a fetch has brought about: the task's files are in `path`, proved and whole."""

    task_id: str
    path: Path
    files: tuple[ManifestFile, ...]
    warnings: tuple[str, ...] = ()
    already_published: bool = False  # no byte was moved
    received_bytes: int = 0
    resumed_bytes: int = 0  # on disk from earlier runs
    transfer_seconds: float = 0.0  # without the waiting and the checks
    seconds: float = 0.0  # of the whole fetch

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def facts(self) -> dict[str, object]:
        """Return the report as plain JSON values."""
        return {
            "task_id": self.task_id,
            "path": str(self.path),
            "already_published": self.already_published,
            "size": self.size,
            "received_bytes": self.received_bytes,
            "resumed_bytes": self.resumed_bytes,
            "transfer_seconds": round(self.transfer_seconds, 3),
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
            "files": [asdict(file) for file in self.files],
        }


class FollowedFailure(DownloaderError):
    """Another process was fetching the task, and it failed there."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
