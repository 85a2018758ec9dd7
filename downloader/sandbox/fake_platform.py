"""The stand-in of the BGE private platform: strict about signatures, true to the document."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, Unpack

from aiohttp import web

from downloader.sandbox import answers
from downloader.sandbox.bucket import utc_now
from downloader.sandbox.faults import Details, FaultQueue, Injection, PlatformFault
from downloader.sandbox.loopback import LoopbackServer, http_date, split_target
from downloader.sandbox.platform_checks import CALLS, Call, Gatekeeper, RefusedError, parse_form
from downloader.sandbox.platform_faults import answer_wrongly
from downloader.sandbox.tasks import FakeTask

__all__ = ["GIVEN_BY_FILES", "FakePlatform", "ObjectLinks"]


class ObjectLinks(Protocol):
    """Where the platform gets its links from: the object store."""

    def object_url(self, key: str, *, signed: bool = True, lifetime: float = 600) -> str:
        """Return a link to an object."""
        ...


class _GivenByFiles:
    """Stands for a result that is made of the task's files; any JSON value may be given instead."""

    def __repr__(self) -> str:
        return "GIVEN_BY_FILES"


GIVEN_BY_FILES = _GivenByFiles()


class FakePlatform:
    """Answers the platform's calls at `http://host:port`; `async with` starts and stops it."""

    def __init__(
        self,
        *,
        app_key: str,
        app_secret: str,
        links: ObjectLinks,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], datetime] = utc_now,
        on_request: Callable[[str], object] | None = None,
    ) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.refused: list[tuple[str, int]] = []
        self.polls: Counter[str] = Counter()
        self._links = links
        self._clock = clock
        self._on_request = on_request
        self._gatekeeper = Gatekeeper(app_key=app_key, app_secret=app_secret, clock=clock)
        self._faults: FaultQueue[PlatformFault] = FaultQueue()
        self._tasks: dict[str, FakeTask] = {}
        self._server = LoopbackServer(self._handle, host=host, port=port)
        self.add_task(
            answers.SAMPLE_TASK_ID, states=("SUCCESS",), result=answers.SAMPLE_TASK_RESULT
        )

    async def __aenter__(self) -> FakePlatform:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._faults.clear()
        await self._server.close()

    @property
    def url(self) -> str:
        """The endpoint."""
        return self._server.url

    @property
    def task_ids(self) -> list[str]:
        """The ids of all tasks that were added."""
        return list(self._tasks)

    def add_task(
        self,
        task_id: str | None = None,
        *,
        files: Sequence[str] = (),
        states: Sequence[str] = ("PENDING", "STARTED", "SUCCESS"),
        polls_per_state: int = 1,
        seconds_per_state: float | None = None,
        result: object = GIVEN_BY_FILES,
        signed: bool = True,
        link_lifetime: float = 600,
    ) -> str:
        """Add a task, or put another in the place of one; returns its id.

        Its states advance with each poll, or by the clock. `result` is links to the objects
        `files`, made anew for each answer, or any JSON value that is given.
        """

        def made(state: str) -> object:
            if result is not GIVEN_BY_FILES:
                return result
            if state != "SUCCESS":
                return f"The task ended as {state} in the sandbox."
            return [
                self._links.object_url(key, signed=signed, lifetime=link_lifetime) for key in files
            ]

        task = FakeTask(
            task_id=task_id or str(uuid.uuid4()),
            states=tuple(states),
            result=made,
            polls_per_state=polls_per_state,
            seconds_per_state=seconds_per_state,
            added_at=self._clock(),
        )
        self._tasks[task.task_id] = task
        self.polls.pop(task.task_id, None)
        return task.task_id

    def inject(
        self,
        fault: PlatformFault,
        *,
        call: str | None = None,
        times: int | None = 1,
        **details: Unpack[Details],
    ) -> Injection[PlatformFault]:
        """Let something go wrong with the next `times` good requests (None: with all).

        `call` is a name such as "task_result"; None is any. A request that is refused, for its
        signature say, meets no fault.
        """
        return self._faults.inject(fault, target=call, times=times, **details)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more, and let everything that is held go on."""
        self._faults.clear()

    # How it answers

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, query = split_target(request)
        call = CALLS.get(f"/{path}")
        name = call.name if call else "unknown"
        outcome = "no answer"
        response: web.StreamResponse | None
        try:
            params = await self._admit(request, call, query)
            outcome = "fault"
            response = await self._answer_wrongly(
                request, name, lambda: self._envelope(0, "", self._data(name, params))
            )
            if response is None:
                response = self._envelope(0, "", self._data(name, params))
                outcome = "code 0"
        except RefusedError as refusal:
            self.refused.append((name, refusal.code))
            response = self._envelope(refusal.code, refusal.msg, None, status=refusal.http_status)
            outcome = f"code {refusal.code}"
        finally:
            if self._on_request is not None:
                self._on_request(f"{self._clock():%H:%M:%S} platform {name} -> {outcome}")
        return response

    async def _admit(
        self, request: web.BaseRequest, call: Call | None, query: str
    ) -> dict[str, str]:
        """Return the call's parameters, if everything about the request is as it must be."""
        if call is None:
            raise RefusedError(404, "no such call", http_status=404)
        if request.method != "POST":
            raise RefusedError(405, "only POST is allowed", http_status=405)
        if request.content_type != "application/x-www-form-urlencoded":
            raise RefusedError(415, "the body must be a form", http_status=415)
        if query:
            raise RefusedError(1001, "parameters belong into the body")
        params = parse_form(await request.read())
        self._gatekeeper.check(params)
        own = call.parameters(params)
        self.calls.append((call.name, own))
        return own

    async def _answer_wrongly(
        self, request: web.BaseRequest, name: str, right: Callable[[], web.Response]
    ) -> web.StreamResponse | None:
        waiting = self._faults.candidates(target=name, method="POST", covered=range(0))
        if not waiting:
            return None
        waiting[0].hit()
        return await answer_wrongly(request, waiting[0], right, headers=self._headers())

    def _data(self, name: str, params: Mapping[str, str]) -> object:
        """Return what the call answers with."""
        if name == "task_result":
            return self._task_result(params["task_id"])
        if name == "sign_url":
            return self._sign_url(params)
        simple = {
            "survey_projects": answers.survey_projects,
            "survey_target": answers.survey_target,
            "question_size": answers.question_size,
            "wechat_profile": answers.wechat_profile,
        }
        return simple[name](params)

    def _task_result(self, task_id: str) -> dict[str, object]:
        polls = self.polls[task_id]
        self.polls[task_id] += 1
        task = self._tasks.get(task_id)
        if task is None:  # the real platform does not tell an unknown id from a waiting one
            return {"status": "PENDING", "result": None}
        return task.answer(polls=polls, now=self._clock())

    def _sign_url(self, params: Mapping[str, str]) -> dict[str, object]:
        lifetime = int(params.get("expiration_time", 600))
        expires = int(self._clock().timestamp() + lifetime)
        url = self._links.object_url(params["object_name"], lifetime=lifetime)
        return {"url": url, "expires": str(expires)}

    def _envelope(self, code: int, msg: str, data: object, *, status: int = 200) -> web.Response:
        envelope = {"code": code, "msg": msg, "data": data}
        body = json.dumps(envelope, ensure_ascii=False).encode()
        headers = {**self._headers(), "Content-Type": "application/json"}
        if status == 405:  # noqa: PLR2004 - RFC 9110 §15.5.6: a 405 names what is allowed
            headers["Allow"] = "POST"
        return web.Response(status=status, body=body, headers=headers)

    def _headers(self) -> dict[str, str]:
        return {"Date": http_date(self._clock())}
