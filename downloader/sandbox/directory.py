"""A folder of the user's own VCFs, told as tasks: one for each pair, and one with everything."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DirectoryTask", "find_tasks"]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "bge-downloader:sandbox")
_VCF = ".vcf.gz"
_INDEXES = (".tbi", ".csi")


@dataclass(frozen=True, slots=True)
class DirectoryTask:
    """A task and its files: keys are the paths relative to the folder."""

    task_id: str
    files: dict[str, Path]


def find_tasks(directory: Path) -> list[DirectoryTask]:
    """Make one task of each VCF with its index, found at any depth, and one of all VCFs.

    Ids are made from the relative paths, so they are the same each time. Hidden files and folders
    are left out; a VCF without an index is in the last task only.
    """
    vcfs = sorted(path for path in directory.rglob(f"*{_VCF}") if _is_wanted(path, directory))
    tasks: list[DirectoryTask] = []
    everything: dict[str, Path] = {}
    for vcf in vcfs:
        indexes = [Path(f"{vcf}{suffix}") for suffix in _INDEXES]
        files = [vcf, *(index for index in indexes if index.is_file())]
        named = {path.relative_to(directory).as_posix(): path for path in files}
        everything.update(named)
        if len(files) > 1:
            tasks.append(DirectoryTask(_task_id(next(iter(named))), named))
    if everything:
        tasks.append(DirectoryTask(_task_id("."), everything))
    return tasks


def _task_id(relative: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, relative))


def _is_wanted(path: Path, directory: Path) -> bool:
    parts = path.relative_to(directory).parts
    return path.is_file() and not any(part.startswith(".") for part in parts)
