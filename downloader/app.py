"""Where settings become ready objects, opened and closed by one exit stack."""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from downloader._version import __version__
from downloader.api import AsyncPrivateAPI, Turns
from downloader.config import Settings
from downloader.fetch import FetchOptions, FetchReport, fetch_task
from downloader.hosts import HostRules
from downloader.network import RuledResolver
from downloader.polling import PollOptions
from downloader.progress import Reporter
from downloader.transfer import (
    BufferPool,
    Connections,
    RateLimit,
    SlowDown,
    StraightRoad,
    TransferOptions,
)
from state import AsyncStore

__all__ = ["App", "open_api", "open_app"]

USER_AGENT = f"bge-downloader/{__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """Everything that fetches share; valid inside `open_app`."""

    dest: Path
    api: AsyncPrivateAPI
    store: AsyncStore
    session: aiohttp.ClientSession
    options: FetchOptions

    async def fetch(self, task_id: str, *, reporter: Reporter | None = None) -> FetchReport:
        """Fetch one task; any number may run side by side."""
        return await fetch_task(
            task_id,
            self.dest,
            api=self.api,
            store=self.store,
            session=self.session,
            options=self.options,
            reporter=reporter,
        )


@contextlib.asynccontextmanager
async def open_app(settings: Settings, *, wait: bool = True) -> AsyncIterator[App]:
    """Give an App made of the settings; `wait=False` asks for each task's result only once.

    Raises:
        UsageError: credentials or settings are missing or wrong; nothing was made yet.
        StateError: the state cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(open_api(settings))
        store = await stack.enter_async_context(await AsyncStore.open(settings.state))
        session = await stack.enter_async_context(store_session(settings))
        buffers = BufferPool(settings.buffer_memory)
        connections = shared_connections(settings, buffers)
        road = straight_road(settings, buffers, connections)
        stack.enter_context(contextlib.closing(road))
        options = fetch_options(settings, wait=wait, connections=connections, road=road)
        yield App(
            dest=settings.dest.expanduser(),
            api=api,
            store=store,
            session=session,
            options=options,
        )


def open_api(settings: Settings, *, turns: Turns | None = None) -> AsyncPrivateAPI:
    """Return a client of the platform, to be closed by its `async with`."""
    app_key, app_secret = settings.credentials()
    return AsyncPrivateAPI(
        app_key,
        app_secret,
        settings.endpoint,
        settings.max_retries,
        settings.timeout,
        retry_max_delay=settings.retry_max_delay,
        turns=turns,
    )


def store_session(settings: Settings) -> aiohttp.ClientSession:
    """Return the HTTP session for object stores: nothing decoded, no limit but on silence."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # `Connections` sets it, and may change it
            resolver=RuledResolver(HostRules.of(settings.allowed_hosts)),
        ),
        # A body of days is fine as long as it keeps coming.
        timeout=aiohttp.ClientTimeout(
            total=None,
            connect=None,
            sock_connect=settings.connect_timeout,
            sock_read=settings.stall_timeout,
        ),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": USER_AGENT},
    )


def shared_connections(settings: Settings, buffers: BufferPool) -> Connections:
    """Return the connections of all transfers: no more than there is memory for their bytes."""
    return Connections(
        settings.connections, most_files=settings.parallel_files, ceiling=buffers.most
    )


def straight_road(
    settings: Settings, buffers: BufferPool, connections: Connections
) -> StraightRoad:
    """Return the way that bytes go, with the session's limits and the session's trust."""
    return StraightRoad(
        # That of SSL_CERT_FILE, where it is set; made once and when needed, for it takes 30 ms.
        context=functools.cache(ssl.create_default_context),
        rules=HostRules.of(settings.allowed_hosts),
        connect_timeout=settings.connect_timeout,
        stall_timeout=settings.stall_timeout,
        user_agent=USER_AGENT,
        buffers=buffers,
        meter=connections.meter,
    )


def fetch_options(
    settings: Settings,
    *,
    wait: bool,
    connections: Connections,
    road: StraightRoad | None = None,
    rate_limit: RateLimit | None = None,
    slow_down: SlowDown | None = None,
) -> FetchOptions:
    """Translate the settings into what fetches are told."""
    return FetchOptions(
        poll=PollOptions(
            interval=settings.poll_interval,
            max_interval=settings.poll_max_interval,
            deadline=settings.poll_deadline,
            wait=wait,
        ),
        transfer=TransferOptions(
            segments=settings.segments,
            segment_size=settings.segment_size,
            retry_max_delay=settings.retry_max_delay,
            min_free_space=settings.min_free_space,
            rules=HostRules.of(settings.allowed_hosts),
            rate_limit=rate_limit or RateLimit(settings.limit_rate),
            slow_down=slow_down or SlowDown(heard=connections.throttled),
            connections=connections,
            straight_road=road,
        ),
        verify=settings.verify,
        checksums=settings.checksums,
    )
