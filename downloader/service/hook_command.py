"""Tells a command of the settings that a task has ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from downloader.hook_rules import check_command
from downloader.logs import printable
from downloader.service.announcement import Announcement, Delivery
from downloader.service.child_process import GRACE_SECONDS, Ended, run_command
from downloader.units import plain_seconds

__all__ = ["HookCommand", "check_command", "environment_for"]

# Secrets of the service, or what may hold one, and what systemd means for the service alone.
WITHHELD = frozenset(
    {
        "BGE_APP_KEY",
        "BGE_APP_SECRET",
        "BGE_ON_COMPLETE",
        "BGE_ON_FAILURE",
        "BGE_STATE",
        "BGE_WEBHOOK",
        "BGE_WEBHOOK_SECRET",
        "CREDENTIALS_DIRECTORY",
        "NOTIFY_SOCKET",
        "PGPASSWORD",
    }
)
WITHHELD_PREFIXES = ("LISTEN_", "WATCHDOG_")

NOT_STARTED = {
    errno.ENOENT: "it, or the interpreter that its first line names, is not there",
    errno.EACCES: "this service may not execute it",
    errno.ENOEXEC: "it is no program; a script starts with a line such as #!/bin/sh",
}


def environment_for(announcement: Announcement, surroundings: Mapping[str, str]) -> dict[str, str]:
    """Return the surroundings without the service's secrets, and with what there is to tell.

    Every variable is set each time, to nothing where there is nothing to say: scripts may run
    with `set -u`.
    """
    kept = {name: value for name, value in surroundings.items() if not _is_withheld(name)}
    manifest = announcement.manifest
    return kept | {
        "BGE_EVENT": announcement.event,
        "BGE_TASK_ID": announcement.task_id,
        "BGE_RESULT_PATH": str(announcement.path.absolute()),
        "BGE_MANIFEST": str(manifest.absolute()) if manifest else "",
        "BGE_MESSAGE": announcement.safe_message or "",
        "BGE_EXIT_CODE": str(announcement.exit_code),
        "BGE_ATTEMPT": str(announcement.attempt),
        "BGE_IDEMPOTENCY_KEY": announcement.key,
    }


class HookCommand:
    """A command that is started once for each attempt; it is done when it ends with 0."""

    def __init__(
        self, words: Sequence[str], *, timeout: float, grace: float = GRACE_SECONDS
    ) -> None:
        check_command(words)
        self._words = tuple(words)
        self._timeout = timeout
        self._grace = grace

    async def deliver(self, announcement: Announcement) -> Delivery:
        """Run the command once; when cancelled, it is ended first."""
        try:
            environment = environment_for(announcement, os.environ)
            ended = await run_command(
                [*self._words, environment["BGE_MANIFEST"] or announcement.task_id],
                environment=environment,
                timeout=self._timeout,
                grace=self._grace,
            )
        except OSError as error:
            reason = NOT_STARTED.get(error.errno or 0) or error.strerror or type(error).__name__
            return self._delivery(f"could not be started: {reason}", Ended(exit_code=None))
        return self._delivery(self._told(ended), ended)

    def _delivery(self, what_happened: str, ended: Ended) -> Delivery:
        is_done = ended.exit_code == 0 and not ended.is_late
        # Only the program's name: an argument may be a secret.
        name = printable(Path(self._words[0]).name)
        return Delivery(
            way="command",
            is_done=is_done,
            may_help_again=not is_done,
            summary=f"The command {name} {what_happened}",
            exit_code=ended.exit_code,
            output=ended.output,
        )

    def _told(self, ended: Ended) -> str:
        if ended.is_late:
            return f"had not ended after {plain_seconds(self._timeout)}, so it was ended"
        if ended.killed_by:
            return f"was killed by {ended.killed_by}"
        return f"ended with exit code {ended.exit_code}"


def _is_withheld(name: str) -> bool:
    return name in WITHHELD or name.startswith(WITHHELD_PREFIXES)
