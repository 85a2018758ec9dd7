"""What `doctor` looks at: each check gives one diagnosis, and none of them changes anything."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pysam.version import __htslib_version__ as htslib_version

from downloader._version import __version__
from downloader.app import open_api
from downloader.concurrency import in_thread
from downloader.config import Settings, exposed_secrets, unknown_environment
from downloader.errors import (
    BusinessError,
    DownloaderError,
    InvalidSettings,
    MissingCredentials,
    PlatformUnavailable,
    redacted,
)
from downloader.network import proxy_url
from downloader.proving import MAX_AT_WORK
from downloader.units import counted, format_bytes, format_seconds
from state import StateError, look_at

__all__ = ["Diagnosis", "examine"]

# The platform says PENDING of every id it does not know, so asking for this one is harmless.
NOBODYS_TASK = "00000000-0000-0000-0000-000000000000"
TOLERABLE_SKEW_SECONDS = 60
FILES_BESIDE_CONNECTIONS = 64  # descriptors for the state, part files, libraries

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was looked at, what was found, and what to do if it is not well."""

    what: str
    verdict: Verdict
    found: str
    mend: str | None = None


async def examine(settings: Settings) -> list[Diagnosis]:
    """Look at everything that a fetch with these settings needs, or the service."""
    return [
        _program(),
        *_environment(),
        *await _platform(settings),
        *await in_thread(_destination, settings),
        await in_thread(_state, settings),
        _descriptors(settings),
        *await in_thread(_service, settings),
    ]


def _program() -> Diagnosis:
    versions = (
        f"bge-downloader {__version__}, Python {platform.python_version()}, "
        f"htslib {htslib_version}, {platform.system()} {platform.release()}"
    )
    return Diagnosis(what="program", verdict="ok", found=versions)


def _environment() -> Iterator[Diagnosis]:
    for name, nearest in unknown_environment():
        yield Diagnosis(
            what="environment",
            verdict="warning",
            found=f"{name} is no setting and has no effect",
            mend=f"did you mean {nearest}?" if nearest else "remove it",
        )
    for path in exposed_secrets():
        yield Diagnosis(
            what="secret",
            verdict="warning",
            found=f"{path} holds a secret and can be read by others",
            mend=f"chmod 600 {path}",
        )
    proxies = urllib.request.getproxies()
    proxies.pop("no", None)  # the hosts that are reached without one
    if proxies:
        shown = ", ".join(f"{scheme} by {_shown_proxy(url)}" for scheme, url in proxies.items())
        yield Diagnosis(what="proxy", verdict="ok", found=shown)


def _shown_proxy(named: str) -> str:
    """Return a proxy's address without what may be a secret, as a password with a raw `/` is."""
    proxy = proxy_url(named)
    if proxy is None or ("@" in named and proxy.user is None):
        return "an address that cannot be used"
    return str(proxy.origin())


async def _platform(settings: Settings) -> list[Diagnosis]:
    try:
        api = open_api(settings)
    except MissingCredentials as error:
        return [Diagnosis(what="credentials", verdict="failed", found=str(error))]
    except InvalidSettings as error:
        return [Diagnosis(what="platform", verdict="failed", found=str(error))]
    async with api:
        try:
            await api.task_result(NOBODYS_TASK)
        except PlatformUnavailable as error:
            return [Diagnosis(what="platform", verdict="failed", found=str(error))]
        except BusinessError as error:
            verdict = Diagnosis(
                what="credentials",
                verdict="failed",
                found=str(error),
                mend="check app_key and app_secret against what the platform issued",
            )
        except DownloaderError as error:
            return [Diagnosis(what="platform", verdict="failed", found=str(error))]
        else:
            accepted = f"accepted by {redacted(settings.endpoint)}"
            verdict = Diagnosis(what="credentials", verdict="ok", found=accepted)
        skew = api.observed_clock_skew
        return [verdict, _clock(None if skew is None else skew.total_seconds())]


def _clock(skew: float | None) -> Diagnosis:
    if skew is None:
        return Diagnosis(what="clock", verdict="warning", found="the platform tells no time")
    if abs(skew) <= TOLERABLE_SKEW_SECONDS:
        found = f"within {abs(skew):.0f} s of the platform's"
        return Diagnosis(what="clock", verdict="ok", found=found)
    side = "behind" if skew > 0 else "ahead of"
    return Diagnosis(
        what="clock",
        verdict="warning",
        found=f"this machine is {format_seconds(abs(skew))} {side} the platform's clock",
        mend="set the clock (timedatectl set-ntp true); fetches go on with the platform's time",
    )


def _destination(settings: Settings) -> list[Diagnosis]:
    dest = settings.dest.expanduser().absolute()
    place = _nearest_existing(dest)
    if not _is_writable_directory(place):
        return [
            Diagnosis(
                what="destination",
                verdict="failed",
                found=f"{dest} cannot be written",
                mend="choose another --dest, or change its owner or mode",
            )
        ]
    note = "" if dest == place else ", which will be made"
    writable = Diagnosis(what="destination", verdict="ok", found=f"{dest}{note}")
    free = shutil.disk_usage(place).free
    if free <= settings.min_free_space:
        return [
            writable,
            Diagnosis(
                what="disk",
                verdict="failed",
                found=f"{format_bytes(free)} free, and min_free_space is "
                f"{format_bytes(settings.min_free_space)}",
                mend="free some space, or choose another --dest",
            ),
        ]
    return [writable, Diagnosis(what="disk", verdict="ok", found=f"{format_bytes(free)} free")]


def _state(settings: Settings) -> Diagnosis:
    path = _state_path(settings.state)
    # Opening it would make it, also where an empty file is.
    if path is not None and not (_may(path, os.F_OK) and path.stat().st_size):
        if _is_writable_directory(_nearest_existing(path.parent)):
            return Diagnosis(what="state", verdict="ok", found=f"{path}, which will be made")
        return Diagnosis(
            what="state",
            verdict="failed",
            found=f"{path} cannot be made",
            mend="name another place with the setting `state`",
        )
    try:
        location, tasks = look_at(settings.state)
    except StateError as error:
        return Diagnosis(what="state", verdict="failed", found=str(error))
    known = "" if tasks is None else f", {counted(tasks, 'task')} known"
    return Diagnosis(what="state", verdict="ok", found=f"{location}{known}")


def _descriptors(settings: Settings) -> Diagnosis:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * settings.connections + MAX_AT_WORK + FILES_BESIDE_CONNECTIONS
    if limit != resource.RLIM_INFINITY and limit < needed:
        return Diagnosis(
            what="open files",
            verdict="failed",
            found=f"{limit} are allowed and {needed} may be needed",
            mend=f"ulimit -n {needed}, or fewer connections and parallel_files",
        )
    return Diagnosis(what="open files", verdict="ok", found=f"{needed} of {limit} may be needed")


def _service(settings: Settings) -> list[Diagnosis]:
    """Look at what only the service uses, as far as it is set."""
    commands = {"on_complete": settings.on_complete, "on_failure": settings.on_failure}
    hooks = [_hook(name, words[0]) for name, words in commands.items() if words]
    return hooks if settings.inbox is None else [*hooks, _inbox(settings.inbox)]


def _hook(name: str, program: str) -> Diagnosis:
    place = shutil.which(program)
    if place is not None:
        return Diagnosis(what=name, verdict="ok", found=place)
    return Diagnosis(
        what=name,
        verdict="failed",
        found=f"{program} is no program that can be run",
        mend="give its whole path, and make it executable",
    )


def _inbox(inbox: Path) -> Diagnosis:
    place = inbox.expanduser().absolute()
    there = _nearest_existing(place)
    if _is_writable_directory(there):
        note = "" if place == there else ", which will be made"
        return Diagnosis(what="inbox", verdict="ok", found=f"{place}{note}")
    return Diagnosis(
        what="inbox",
        verdict="failed",
        found=f"{place} is no folder in which files can be moved",
        mend="make it, or change its owner or mode; the service moves what it has read",
    )


def _state_path(state: str) -> Path | None:
    """Return the file that the state is in; None where it is a server's."""
    name = state.removeprefix("sqlite:///")
    return None if "://" in name else Path(name).expanduser().absolute()


def _nearest_existing(path: Path) -> Path:
    while not _may(path, os.F_OK) and path != path.parent:
        path = path.parent
    return path


def _is_writable_directory(path: Path) -> bool:
    return _may(path, os.W_OK | os.X_OK) and path.is_dir()


def _may(path: Path, mode: int) -> bool:
    # Not `Path.exists`, which raises where a directory above may not be entered.
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
