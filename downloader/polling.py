"""Asks for a task's result until there is one, the task has failed, or the deadline has passed."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from downloader.errors import BadTaskResult, PlatformUnavailable, TaskFailed, TaskNotReady
from downloader.logs import one_line, scrubbed
from downloader.progress import Reporter
from downloader.retry import pause, pause_seconds
from downloader.units import format_seconds

__all__ = ["PollOptions", "TaskResults", "not_ready", "status_of", "wait_for_result"]

# Celery's words; an unknown one counts as going on.
GOING_ON = ("PENDING", "RECEIVED", "STARTED", "RETRY")
FAILED = ("FAILURE", "REVOKED")
MAX_STATUS = 40  # characters of a status
MAX_REASON = 500  # characters of the platform's reason that are shown
LAST_ASK_SECONDS = 2.0  # for the question that is asked at the deadline itself

logger = logging.getLogger(__name__)


class TaskResults(Protocol):
    """The one call of the platform that is needed here."""

    async def task_result(self, task_id: str) -> Mapping[str, Any]:
        """Return the task's `status` and, once that is SUCCESS, its `result`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PollOptions:
    """How patiently a task is waited for; everything in seconds."""

    interval: float = 5.0
    max_interval: float = 300.0
    deadline: float = 7 * 86400.0
    wait: bool = True  # False: ask once


async def wait_for_result(
    task_id: str,
    *,
    api: TaskResults,
    options: PollOptions,
    reporter: Reporter,
    record: Callable[[str], Awaitable[None]],
) -> object:
    """Return the `result` of a task that is SUCCESS, as the platform sent it.

    `record` is given the status of every poll. A platform that has answered once may be away for
    as long as the deadline allows; one that never answered ends the waiting at once.

    Raises:
        TaskFailed: the platform says FAILURE or REVOKED.
        TaskNotReady: there is no result by the deadline, or now if nobody wants to wait.
        PlatformError: the platform cannot be reached, or refuses the call.
    """
    return await _Waiting(task_id, api=api, options=options, reporter=reporter).ends(record)


class _Waiting:
    def __init__(
        self, task_id: str, *, api: TaskResults, options: PollOptions, reporter: Reporter
    ) -> None:
        self._task_id = task_id
        self._api = api
        self._options = options
        self._reporter = reporter
        self._began = time.monotonic()
        self._status: str | None = None
        self._polls = 0
        self._unchanged = 0  # polls in a row that brought nothing new

    async def ends(self, record: Callable[[str], Awaitable[None]]) -> object:
        while True:
            retry_after = None
            try:
                answer = await self._ask()
            except PlatformUnavailable as error:
                if self._status is None or not self._options.wait:
                    raise
                retry_after = error.retry_after
                self._unchanged += 1
                self._reporter.note(f"{error}; still waiting for the task")
            else:
                status = read_status(answer)
                await record(status)
                if status == "SUCCESS":
                    return answer.get("result")
                self._judge(status, answer)
            await self._pause(retry_after)

    async def _ask(self) -> Mapping[str, Any]:
        left = max(self._left, LAST_ASK_SECONDS) if self._options.wait else None
        try:
            async with asyncio.timeout(left):
                return await self._api.task_result(self._task_id)
        except TimeoutError:
            raise self._not_ready() from None

    def _judge(self, status: str, answer: Mapping[str, Any]) -> None:
        """Raise where waiting has no use; otherwise take note of the status."""
        status_of(self._task_id, answer)
        if status not in GOING_ON and status != self._status:
            logger.warning("The platform calls task %s %r; waiting on", self._task_id, status)
        self._unchanged = 1 if status != self._status else self._unchanged + 1
        self._polls += 1
        self._status = status
        if not self._options.wait:
            raise self._not_ready()

    async def _pause(self, retry_after: float | None) -> None:
        if self._left <= 0:
            raise self._not_ready()
        seconds = pause_seconds(
            self._unchanged,
            first=self._options.interval,
            maximum=self._options.max_interval,
            retry_after=retry_after,
        )
        seconds = min(seconds, self._left)
        self._reporter.polled(self._status or "", polls=self._polls, next_in_seconds=seconds)
        await pause(seconds)

    @property
    def _left(self) -> float:
        return self._options.deadline - (time.monotonic() - self._began)

    def _not_ready(self) -> TaskNotReady:
        if self._status is None:
            return TaskNotReady(
                f"The platform gave no answer about task {self._task_id} within "
                f"{format_seconds(self._options.deadline)}; try again, or allow more with --timeout"
            )
        waited = self._options.deadline if self._options.wait else None
        return not_ready(
            self._task_id, self._status, waited, what_next="the same command goes on waiting"
        )


def not_ready(
    task_id: str, status: str, waited_seconds: float | None, *, what_next: str
) -> TaskNotReady:
    """Return the error of a task without a result, after so long if anybody waited for it."""
    patience = "" if waited_seconds is None else f" after {format_seconds(waited_seconds)}"
    hint = (
        "; the platform says PENDING of ids it does not know too, so check the id"
        if status == "PENDING"
        else ""
    )
    return TaskNotReady(
        f"Task {task_id} has no result yet{patience}, it is {status}{hint}; {what_next}"
    )


def status_of(task_id: str, answer: Mapping[str, Any]) -> str:
    """Return the status of a task that is SUCCESS or may still become it.

    Raises:
        TaskFailed: the platform says FAILURE or REVOKED.
        BadTaskResult: the answer names no status.
    """
    status = read_status(answer)
    if status in FAILED:
        raise TaskFailed(
            f"The platform says that task {task_id} has failed ({status}): "
            f"{_told(answer.get('result'))}"
        )
    return status


def read_status(answer: Mapping[str, Any]) -> str:
    """Return the platform's word.

    Raises:
        BadTaskResult: the answer has none.
    """
    status = answer.get("status")
    if not isinstance(status, str) or not status.strip():
        raise BadTaskResult(
            "The platform's answer names no status of the task, where one such as PENDING or "
            "SUCCESS was expected; check that `endpoint` is the platform's address"
        )
    return one_line(status, MAX_STATUS).upper()


def _told(reason: object) -> str:
    """Return the platform's reason, of whatever kind it is, as one line without secrets."""
    if reason in (None, "", [], {}):
        return "it gives no reason"
    words = reason if isinstance(reason, str) else json.dumps(reason, ensure_ascii=False)
    # Cut first, since it may be megabytes; a secret that the cut has shortened is scrubbed too.
    return one_line(scrubbed(words[: 10 * MAX_REASON]), MAX_REASON)
