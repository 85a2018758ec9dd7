"""Whom the service tells that it has ended a task for good: a command, a webhook, or both.

Telling is at least once: whoever calls `deliver` keeps what is still to be told, and calls again
until it is done or cannot help any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from downloader.service.announcement import Announcement, Delivery, Event, Way
from downloader.service.child_process import GRACE_SECONDS
from downloader.service.hook_command import HookCommand
from downloader.service.webhook import Webhook

__all__ = [
    "Announcement",
    "Delivery",
    "Event",
    "Hooks",
]


class Hooks:
    """Delivers announcements by the ways that the settings name; holds nothing between them."""

    def __init__(
        self,
        *,
        on_complete: Sequence[str] | None = None,
        on_failure: Sequence[str] | None = None,
        webhook: str | None = None,
        webhook_secret: str | None = None,
        timeout: float = 300.0,
        grace: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Check what the settings say.

        Raises:
            InvalidSettings: a command or the webhook cannot be used.
        """
        words: Mapping[Event, Sequence[str] | None] = {
            "complete": on_complete,
            "failure": on_failure,
        }
        self._commands = {
            event: HookCommand(command, timeout=timeout, grace=grace)
            for event, command in words.items()
            if command is not None
        }
        self._webhook = webhook and Webhook(
            webhook, secret=webhook_secret, timeout=timeout, clock=clock
        )

    def ways(self, event: Event) -> tuple[Way, ...]:
        """Return by which ways an event is told; each is delivered on its own."""
        command: tuple[Way, ...] = ("command",) if event in self._commands else ()
        return (*command, "webhook") if self._webhook else command

    async def deliver(self, way: Way, announcement: Announcement) -> Delivery:
        """Tell of a task's end by one way, once; raises nothing but the caller's cancellation.

        What is bounded: a command and a POST by `timeout`; the end of a command that is late or
        cancelled by twice `grace`.
        """
        hook = self._commands.get(announcement.event) if way == "command" else self._webhook
        if hook:
            return await hook.deliver(announcement)
        return Delivery(
            way=way,
            is_done=False,
            may_help_again=False,
            summary=f"The settings name no {way} for this any more, so nobody was told",
        )
