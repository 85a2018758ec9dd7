"""How the platform answers when a fault was asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

from aiohttp import web

from downloader.sandbox.faults import Details, Injection, PlatformFault
from downloader.sandbox.loopback import (
    NO_HTTP,
    close_connection,
    reset_connection,
    say_instead,
)

__all__ = ["answer_wrongly"]

HUGE_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 256 * 1024


async def answer_wrongly(
    request: web.BaseRequest,
    injection: Injection[PlatformFault],
    right: Callable[[], web.Response],
    *,
    headers: Mapping[str, str],
) -> web.StreamResponse | None:
    """Answer as the fault wants it; None where the `right` answer shall follow after all."""
    injection.happened.set()
    if injection.fault is PlatformFault.HANG:
        await injection.released.wait()
        return None
    if injection.fault is PlatformFault.RESET:
        reset_connection(request)
        return web.Response()
    if injection.fault is PlatformFault.GARBAGE:
        say_instead(request, NO_HTTP)
        return web.Response()
    if injection.fault in (PlatformFault.CUT, PlatformFault.TRICKLE):
        return await _in_pieces(request, injection, right())
    if injection.fault is PlatformFault.HUGE_JSON:
        size = injection.details.get("size", HUGE_BYTES)
        return await _huge_json(request, size, headers=headers)
    return _small(injection.fault, injection.details, headers=headers)


def _small(
    fault: PlatformFault, details: Details, *, headers: Mapping[str, str]
) -> web.StreamResponse:
    status, kind, body = 200, "application/json", b""
    more: Mapping[str, str] = {}
    if fault is PlatformFault.STATUS:
        status, kind, body = details.get("status", 500), "text/plain", b"upstream error\n"
        more = details.get("headers", {})
    elif fault is PlatformFault.RATE_LIMIT:
        status, kind, body = 429, "text/plain", b"too many requests\n"
        more = {"Retry-After": str(details.get("retry_after", 1))}
    elif fault is PlatformFault.HTML:
        status, kind = details.get("status", 200), "text/html; charset=utf-8"
        body = b"<!DOCTYPE html>\n<html><body><h1>Gateway</h1></body></html>\n"
    elif fault is PlatformFault.BROKEN_JSON:
        body = b'{"code": 0, "msg": "", "data": {"status": "SUCC'
    elif fault is PlatformFault.NOT_OBJECT:
        body = b'["code", 0]'
    elif fault is PlatformFault.BODY:
        status, body = details.get("status", 200), details.get("body", b"")
    elif fault is PlatformFault.REDIRECT:
        location = details.get("location") or "/"
        status, more = 307, {"Location": location if isinstance(location, str) else location()}
    else:
        envelope = {
            "code": details.get("code", 1500),
            "msg": details.get("message", "系统错误 (business error)"),
            "data": None,
        }
        body = json.dumps(envelope, ensure_ascii=False).encode()
    return web.Response(status=status, body=body, headers={**headers, "Content-Type": kind, **more})


async def _in_pieces(
    request: web.BaseRequest, injection: Injection[PlatformFault], right: web.Response
) -> web.StreamResponse:
    """Send the right answer piece by piece, whole or half of it."""
    body = right.body if isinstance(right.body, bytes) else b""
    is_cut = injection.fault is PlatformFault.CUT
    chunk = injection.details.get("chunk", 16)
    response = web.StreamResponse(headers=right.headers)
    response.content_length = len(body)
    try:
        await response.prepare(request)
        for start in range(0, len(body) // 2 if is_cut else len(body), chunk):
            await response.write(body[start : start + chunk])
            await asyncio.sleep(0 if is_cut else injection.details.get("interval", 0.01))
    except ConnectionError:
        is_cut = True
    if is_cut:
        close_connection(request)
    return response


async def _huge_json(
    request: web.BaseRequest, size: int, *, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Send an answer that is right in every way but its size."""
    head, tail = b'{"code": 0, "msg": "', b'", "data": {"status": "PENDING", "result": null}}'
    response = web.StreamResponse(headers={**headers, "Content-Type": "application/json"})
    response.content_length = max(size, len(head) + len(tail))
    filler = response.content_length - len(head) - len(tail)
    try:
        await response.prepare(request)
        await response.write(head)
        for start in range(0, filler, CHUNK_BYTES):
            await response.write(b"x" * min(CHUNK_BYTES, filler - start))
        await response.write(tail)
    except ConnectionError:
        reset_connection(request)
    return response
