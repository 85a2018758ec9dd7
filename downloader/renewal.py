"""Fresh links for objects whose links were refused: asked for once, for everybody who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from downloader.errors import BadTaskResult, LinkRefused, redacted
from downloader.hosts import HostRules
from downloader.progress import Reporter
from downloader.retry import pause
from downloader.task_result import PlannedObject, plan_objects

__all__ = ["LinkRenewal", "LinkSource"]

ANOTHER_SECOND = 1.1  # after which a link that is signed anew expires later


class LinkSource(Protocol):
    """The two calls of the platform that give links."""

    async def task_result(self, task_id: str) -> Mapping[str, Any]:
        """Return the task's `status` and `result`."""
        ...

    async def sign_url(self, object_name: str) -> Mapping[str, Any]:
        """Return a signed `url` of an object."""
        ...


class LinkRenewal:
    """Renews the links of one task.

    The task's result is asked for again, once for all of its objects that were refused together;
    an object whose link there was refused before (a bare one, which nobody signed) gets a
    signed one by `sign_url`.
    """

    def __init__(
        self, task_id: str, *, api: LinkSource, rules: HostRules, reporter: Reporter
    ) -> None:
        self._task_id = task_id
        self._api = api
        self._rules = rules
        self._reporter = reporter
        self._lock = asyncio.Lock()
        self._links: dict[tuple[str, str], tuple[str, ...]] = {}  # in pieces, as they are planned
        self._refused: set[str] = set()

    async def renew(self, wanted: PlannedObject, refused: str) -> str:
        """Return a link to the object other than the refused one.

        Raises:
            LinkRefused: the platform has no other link.
            PlatformError: it could not be asked.
        """
        identity = (wanted.bucket, wanted.key)
        self._refused.add(refused)
        async with self._lock:
            known = self._known(identity)
            # A bare link that the platform has told again is told for ever: it is to be signed.
            if known is None or (known == refused and urlsplit(refused).query):
                await self._ask_again()
                self._reporter.note(f"{wanted.name}: its link was refused or expires; renewed it")
            link = self._known(identity)
            if link is None:
                raise LinkRefused(
                    f"The store refused the link to {wanted.name}, and the task's result does not "
                    "list this file any more; run the same command again to begin with the new one"
                )
            if link in self._refused:
                link = await self._signed(wanted)
                self._links[identity] = (link,)
            return link

    def _known(self, identity: tuple[str, str]) -> str | None:
        pieces = self._links.get(identity)
        return None if pieces is None else "".join(pieces)

    async def _ask_again(self) -> None:
        answer = await self._api.task_result(self._task_id)
        status = str(answer.get("status")).upper()
        if status != "SUCCESS":
            raise LinkRefused(
                f"The store refused a link, and the platform gives no other: it says that task "
                f"{self._task_id} is {status[:40]} by now; run the same command again to wait for "
                "its result, what was received is kept"
            )
        objects = plan_objects(answer.get("result"), rules=self._rules)
        self._links = {(one.bucket, one.key): one.link for one in objects}

    async def _signed(self, wanted: PlannedObject) -> str:
        link = await self._ask_to_sign(wanted)
        if link in self._refused:
            # Signed within one second, two links are the same; and a refusal may pass.
            await pause(ANOTHER_SECOND)
            link = await self._ask_to_sign(wanted)
        if link in self._refused:
            raise LinkRefused(
                f"The store refuses the only link that there is to {wanted.name}: ask the "
                "platform's support, naming the task id"
            )
        return link

    async def _ask_to_sign(self, wanted: PlannedObject) -> str:
        answer = await self._api.sign_url(wanted.key)
        link = answer.get("url")
        if not isinstance(link, str) or not link:
            raise BadTaskResult(
                f"The platform was asked to sign a link to {wanted.name} and gave none; "
                "ask the platform's support, naming the task id"
            )
        signed = plan_objects([link], rules=self._rules)[0]
        if signed.key != wanted.key:
            raise BadTaskResult(
                f"The platform was asked to sign a link to {wanted.name} and gave one to another "
                f"object, {redacted(link)}; nothing was fetched from it"
            )
        return link
