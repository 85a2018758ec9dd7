"""The platform's client of the settings that hold now."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from downloader.api import AsyncPrivateAPI

__all__ = ["CurrentAPI"]


class CurrentAPI:
    """Asks by the client that was given last; calls under way end with the one they began with."""

    def __init__(self, client: AsyncPrivateAPI) -> None:
        self._client = client
        self._in_use: Counter[AsyncPrivateAPI] = Counter()

    async def task_result(self, task_id: str) -> Mapping[str, Any]:
        """Return the task's `status` and, once that is SUCCESS, its `result`."""
        async with self._lent() as client:
            return await client.task_result(task_id)

    async def sign_url(self, object_name: str) -> Mapping[str, Any]:
        """Return a signed `url` of an object."""
        async with self._lent() as client:
            return await client.sign_url(object_name)

    async def replace(self, client: AsyncPrivateAPI) -> None:
        """Ask by this client from now on; the one before is closed once nobody uses it."""
        before, self._client = self._client, client
        if not self._in_use[before]:
            await before.close()

    async def close(self) -> None:
        """Close every client."""
        for client in {self._client, *self._in_use}:
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def _lent(self) -> AsyncIterator[AsyncPrivateAPI]:
        client = self._client
        self._in_use[client] += 1
        try:
            yield client
        finally:
            self._in_use[client] -= 1
            if not self._in_use[client]:
                del self._in_use[client]
                if client is not self._client:
                    await client.close()
