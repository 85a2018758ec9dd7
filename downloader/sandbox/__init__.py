"""The other side, played on loopback: a stand-in of the platform and one of the object store.

Both are stricter than the real ones, and go wrong on request. For tests, the demo, and whoever
wants to try the program without credentials:

    async with Sandbox() as sandbox:
        task_id = sandbox.add_task({"a/sample.vcf.gz": vcf, "a/sample.vcf.gz.tbi": tbi})
        sandbox.store.inject(Fault.CUT, key="a/sample.vcf.gz", after=1000)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from downloader.errors import InvalidSettings
from downloader.sandbox.bucket import utc_now
from downloader.sandbox.directory import find_tasks
from downloader.sandbox.fake_object_store import FakeObjectStore
from downloader.sandbox.fake_platform import GIVEN_BY_FILES, FakePlatform
from downloader.sandbox.faults import Fault, Injection, PlatformFault
from downloader.sandbox.ledger import StoreRequest

__all__ = [
    "FakeObjectStore",
    "FakePlatform",
    "Fault",
    "Injection",
    "PlatformFault",
    "Sandbox",
    "StoreRequest",
]


class Sandbox:
    """A platform and a store that know each other, from `async with` to its end."""

    app_key = "sandbox-key"
    app_secret = "sandbox-secret-not-real"  # noqa: S105 - opens nothing but this

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        store_port: int = 0,
        public: bool = False,
        clock: Callable[[], datetime] = utc_now,
        bytes_per_second: float | None = None,
        total_bytes_per_second: float | None = None,
        latency: float = 0.0,
        on_request: Callable[[str], object] | None = None,
    ) -> None:
        self.store = FakeObjectStore(
            host=host,
            port=store_port,
            public=public,
            clock=clock,
            bytes_per_second=bytes_per_second,
            total_bytes_per_second=total_bytes_per_second,
            latency=latency,
            on_request=on_request,
        )
        self.platform = FakePlatform(
            app_key=self.app_key,
            app_secret=self.app_secret,
            links=self.store,
            host=host,
            port=port,
            clock=clock,
            on_request=on_request,
        )
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Sandbox:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.store)
            await stack.enter_async_context(self.platform)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def endpoint(self) -> str:
        """The platform's address."""
        return self.platform.url

    def environment(self) -> dict[str, str]:
        """Return the settings with which the program talks to this sandbox."""
        return {
            "BGE_ENDPOINT": self.endpoint,
            "BGE_APP_KEY": self.app_key,
            "BGE_APP_SECRET": self.app_secret,
            "BGE_ALLOWED_HOSTS": urlsplit(self.store.url).hostname or "",
        }

    def add_task(
        self,
        files: Mapping[str, bytes | Path] | Sequence[str] = (),
        *,
        task_id: str | None = None,
        states: Sequence[str] = ("PENDING", "STARTED", "SUCCESS"),
        polls_per_state: int = 1,
        seconds_per_state: float | None = None,
        result: object = GIVEN_BY_FILES,
        signed: bool = True,
        link_lifetime: float = 600,
    ) -> str:
        """Add a task whose result is these files, storing them if their bytes are given."""
        if isinstance(files, Mapping):
            for key, data in files.items():
                self.store.put(key, data)
        return self.platform.add_task(
            task_id,
            files=list(files),
            states=states,
            polls_per_state=polls_per_state,
            seconds_per_state=seconds_per_state,
            result=result,
            signed=signed,
            link_lifetime=link_lifetime,
        )

    def serve_directory(
        self, directory: Path, *, states: Sequence[str] = ("PENDING", "STARTED", "SUCCESS")
    ) -> dict[str, list[str]]:
        """Serve the VCFs of a folder from where they lie; returns each task's id and keys.

        Each VCF with its index is a task, and the last task has everything. The ids are the same
        each time.
        """
        found = find_tasks(directory) if directory.is_dir() else []
        if not found:
            raise InvalidSettings(
                f"There is nothing to serve in {directory}: it must be a folder with at least one "
                "file named *.vcf.gz in it."
            )
        for key, path in found[-1].files.items():
            self.store.put(key, path)
        for task in found:
            self.add_task(list(task.files), task_id=task.task_id, states=states)
        return {task.task_id: list(task.files) for task in found}
