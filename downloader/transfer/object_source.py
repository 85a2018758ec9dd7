"""The object as its store gives it: ranges asked for by a link that is renewed when refused."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp

from downloader.errors import LinkRefused, ObjectChanged
from downloader.hosts import HostRules
from downloader.transfer.file_turns import Turn
from downloader.transfer.link import Link
from downloader.transfer.ranged_get import Body, Version, ranged_get
from downloader.transfer.straight import StraightRoad
from downloader.transfer.straight_body import StraightBody
from downloader.transfer.throttle import SlowDown

__all__ = ["ObjectSource"]

MAX_RENEWALS = 2  # of the link, for one request


class ObjectSource:
    """One object in its store; all its segments ask here."""

    def __init__(
        self,
        link: Link,
        session: aiohttp.ClientSession,
        *,
        rules: HostRules,
        slow_down: SlowDown,
    ) -> None:
        self._link = link
        self._session = session
        self._rules = rules
        self._slow_down = slow_down

    @property
    def is_left_alone(self) -> bool:
        """Tell whether the store has asked for a pause that is not over."""
        return self._slow_down.is_asked(self._link.store)

    def leave_alone(self, seconds: float) -> None:
        """Let nobody ask the object's store for so long: it wants that."""
        self._slow_down.ask(self._link.store, seconds)

    async def may_be_asked(self) -> None:
        """Return when new requests may be sent to the object's store."""
        await self._slow_down.wait(self._link.store)

    @contextlib.asynccontextmanager
    async def get(
        self,
        start: int,
        stop: int,
        version: Version | None,
        *,
        road: StraightRoad | None = None,
        then: Callable[[StraightBody], None] | None = None,
        turn: Turn | None = None,
    ) -> AsyncIterator[Body | StraightBody]:
        """Send one ranged GET, as `ranged_get` does, with a link that the store takes.

        By the straight road, if there is one and it leads there; `then` is only for that. While
        the store wants to be left alone, others have the connection of the file's `turn`.
        """
        async with contextlib.AsyncExitStack() as stack:
            yield await self._opened(stack, _Wanted(start, stop, version, road, then, turn))

    async def _opened(
        self, stack: contextlib.AsyncExitStack, wanted: _Wanted
    ) -> Body | StraightBody:
        renewals, is_doubted = 0, False
        while True:
            await self._wait_for_the_store(wanted.turn)
            url = await self._link.current()
            try:
                return await self._asked(stack, url, wanted)
            except LinkRefused as refusal:
                if renewals == MAX_RENEWALS:
                    raise
                renewals += 1
                try:
                    await self._link.renewed(url)
                except LinkRefused as error:  # the store's own words are what the user needs
                    raise LinkRefused(f"{refusal}. {error}") from error
            except ObjectChanged:
                # Everything would be thrown away: one strange reply is not enough for that.
                if is_doubted:
                    raise
                is_doubted = True

    async def _wait_for_the_store(self, turn: Turn | None) -> None:
        while self.is_left_alone:  # also after the wait for another turn
            async with contextlib.nullcontext() if turn is None else turn.away():
                await self.may_be_asked()

    async def _asked(
        self, stack: contextlib.AsyncExitStack, url: str, wanted: _Wanted
    ) -> Body | StraightBody:
        start, stop, version, road = wanted.start, wanted.stop, wanted.version, wanted.road
        parts = self._rules.check(url)
        if road is not None and road.leads_to(parts):
            straight = await road.ask(
                parts, start=start, stop=stop, version=version, then=wanted.then
            )
            if straight is not None:
                return stack.enter_context(contextlib.closing(straight))
        plain = ranged_get(
            self._session, url, start=start, stop=stop, version=version, rules=self._rules
        )
        return await stack.enter_async_context(plain)


@dataclass(frozen=True, slots=True)
class _Wanted:
    start: int
    stop: int
    version: Version | None
    road: StraightRoad | None
    then: Callable[[StraightBody], None] | None
    turn: Turn | None
