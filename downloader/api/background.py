"""An event loop in a thread of its own, so that async work has a synchronous door."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["BackgroundLoop"]

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines for other threads; starts with the first one, ends with `stop`."""

    def __init__(self, *, at_end: Callable[[], Awaitable[None]]) -> None:
        self._at_end = at_end  # runs on the loop, before it ends
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ending: asyncio.Event | None = None
        self._pid = 0
        self._is_stopped = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the loop and wait for its result; safe from any thread."""
        try:
            future = self._submit(work)
        except BaseException:
            work.close()  # it never ran, and must not be warned about
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("The client was closed during the call") from None
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread ends the work too
            raise

    def stop(self, *, wait_seconds: float = 5.0) -> None:
        """End the loop and what still runs on it; wait for that unless called from itself."""
        with self._lock:
            self._is_stopped = True
            loop, ending, thread = self._loop, self._ending, self._thread
            if loop is None or ending is None or thread is None or self._pid != os.getpid():
                return
            if thread.is_alive():
                loop.call_soon_threadsafe(ending.set)
        if thread is not threading.current_thread():
            thread.join(timeout=wait_seconds)

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        # Under the lock, so that nothing is handed in after the loop was told to end: it would
        # be waited for in vain.
        with self._lock:
            if self._is_stopped:
                raise RuntimeError("This client is closed; make a new one")
            if self._loop is not None and self._pid != os.getpid():
                # Threads do not survive a fork: the call would never be answered.
                raise RuntimeError("This client was used before a fork; make one in each process")
            return asyncio.run_coroutine_threadsafe(work, self._loop or self._start())

    def _start(self) -> asyncio.AbstractEventLoop:
        ready = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=self._run_loop, args=(ready,), name="bge-api", daemon=True
        )
        self._thread.start()
        ready.wait()
        if self._loop is None:
            raise RuntimeError("No event loop could be started for the client")
        return self._loop

    def _run_loop(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        finally:
            ready.set()  # a loop that could not even start must not leave its starter waiting

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        ready.set()
        await self._ending.wait()
        await self._at_end()
