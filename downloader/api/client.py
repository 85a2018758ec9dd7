"""The platform's two faces: `AsyncPrivateAPI`, and the vendor's synchronous `PrivateAPI`.

Both have the same methods, written once in `_Calls`; they differ in how a call is carried out.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

import aiohttp

from downloader.api import endpoints
from downloader.api.background import BackgroundLoop
from downloader.api.endpoints import Call, Condition
from downloader.api.model import Model
from downloader.api.transport import DEFAULT_ENDPOINT, Options, Transport, logger
from downloader.api.turns import Turns

__all__ = ["AsyncPrivateAPI", "PrivateAPI"]

Answer = TypeVar("Answer")  # a Model, or the promise of one
P = ParamSpec("P")


class _Calls(Generic[Answer]):
    """The platform's calls. Wrong arguments raise `InvalidArgument`, and nothing is sent."""

    _transport: Transport

    def _call(self, build: Callable[P, Call], *args: P.args, **kwargs: P.kwargs) -> Answer:
        raise NotImplementedError

    def task_result(self, task_id: str) -> Answer:
        """Return a task's `status` and, once that is SUCCESS, the URLs of its files in `result`."""
        return self._call(endpoints.task_result, task_id)

    def survey_projects(self, project_ids: str | Sequence[str]) -> Answer:
        """Return what is known of projects: one id, ids joined by commas, or a sequence of ids."""
        return self._call(endpoints.survey_projects, project_ids)

    def survey_target(
        self,
        AND: Sequence[Condition] | None = None,  # noqa: N803 - the vendor's parameter names
        OR: Sequence[Condition] | None = None,  # noqa: N803
        limit: int | None = None,
        page: int | None = None,
    ) -> Answer:
        """Return the users that meet all conditions of AND and at least one of OR, by pages."""
        return self._call(endpoints.survey_target, AND, OR, limit, page)

    def question_size(self, user_id: str) -> Answer:
        """Return how many questions a user has answered, as `total`."""
        return self._call(endpoints.question_size, user_id)

    def wechat_profile(self, user_id: str) -> Answer:
        """Return a user's WeChat ids and nickname."""
        return self._call(endpoints.wechat_profile, user_id)

    def sign_url(
        self, object_name: str, region: str | None = None, expiration_time: int | None = None
    ) -> Answer:
        """Return a fresh signed `url` of an object, and when it `expires`.

        `object_name` is the object's key, `region` is domestic or international,
        `expiration_time` is in seconds.
        """
        return self._call(endpoints.sign_url, object_name, region, expiration_time)

    @property
    def clock_skew(self) -> timedelta:
        """How far the platform's clock is ahead of ours, as far as it had to be learned."""
        return self._transport.clock.skew

    @property
    def observed_clock_skew(self) -> timedelta | None:
        """How far the platform's clock was ahead of ours in its last reply; None if not told."""
        return self._transport.clock.observed

    def __repr__(self) -> str:
        return f"{type(self).__name__}(endpoint={self._transport.options.endpoint!r})"


class AsyncPrivateAPI(_Calls[Coroutine[Any, Any, Model]]):
    """The platform for async code; every call is a coroutine. Belongs to one event loop.

    Passing faults are tried again `max_retries` times; `timeout` is in seconds, for each attempt.
    A `session` that is handed in stays the caller's to close. Each attempt waits for one of the
    `turns`, which clients may share; that is not part of its `timeout`.
    """

    def __init__(  # noqa: PLR0917 - the vendor's signature
        self,
        app_key: str,
        app_secret: str,
        endpoint: str | None = None,
        max_retries: int = 3,
        timeout: float = 16,
        verbose: bool = False,
        *,
        session: aiohttp.ClientSession | None = None,
        retry_max_delay: float = 60.0,
        turns: Turns | None = None,
    ) -> None:
        options = Options(
            app_key=app_key,
            app_secret=app_secret,
            endpoint=(endpoint or "").strip().rstrip("/") or DEFAULT_ENDPOINT,
            max_retries=max_retries,
            timeout=timeout,
            verbose=verbose,
            retry_max_delay=retry_max_delay,
        )
        self._transport = Transport(options, session, turns=turns)
        if verbose:
            _make_log_visible()

    async def _call(self, build: Callable[P, Call], *args: P.args, **kwargs: P.kwargs) -> Model:
        return await self._transport.send(build(*args, **kwargs))

    async def close(self) -> None:
        """Close the connections; calling it again does nothing."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class PrivateAPI(_Calls[Model]):
    """The platform for ordinary code, with the vendor's constructor and methods.

    It drives an `AsyncPrivateAPI` on an event loop of its own, so that it works where a loop is
    running already (Jupyter), and from any number of threads.
    """

    def __init__(  # noqa: PLR0917 - the vendor's signature
        self,
        app_key: str,
        app_secret: str,
        endpoint: str | None = None,
        max_retries: int = 3,
        timeout: float = 16,
        verbose: bool = False,
    ) -> None:
        self._async = AsyncPrivateAPI(app_key, app_secret, endpoint, max_retries, timeout, verbose)
        self._transport = self._async._transport  # noqa: SLF001 - its other face
        self._background = BackgroundLoop(at_end=self._async.close)
        # Dropped without `close`, or at exit. The wait is short: the collector may run anywhere.
        self._finalizer = weakref.finalize(self, self._background.stop, wait_seconds=1.0)

    def _call(self, build: Callable[P, Call], *args: P.args, **kwargs: P.kwargs) -> Model:
        return self._background.run(self._async._call(build, *args, **kwargs))  # noqa: SLF001

    def close(self) -> None:
        """Close the connections and end the loop; calling it again does nothing."""
        self._finalizer.detach()
        self._background.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _make_log_visible() -> None:
    """Let `verbose` be seen where the program around us has not set up any logging."""
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
