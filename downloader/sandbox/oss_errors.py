"""The object store's errors and their XML, member by member as Aliyun OSS writes them."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

__all__ = ["OssError"]


class OssError(Exception):
    """An answer of the store that is an error: a status, OSS's code, a message and facts."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        facts: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}")  # facts stay out: they may quote a signature
        self.status = status
        self.code = code
        self.message = message
        self.facts = dict(facts or {})
        self.headers = dict(headers or {})

    def document(self, *, request_id: str, host_id: str) -> bytes:
        """Return the XML body of the error."""
        members = {
            "Code": self.code,
            "Message": self.message,
            "RequestId": request_id,
            "HostId": host_id,
            **self.facts,
        }
        lines = [f"  <{name}>{escape(value)}</{name}>" for name, value in members.items()]
        body = "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', "<Error>", *lines, "</Error>"])
        return f"{body}\n".encode()


def expired(expires: str, server_time: str) -> OssError:
    """Say what OSS says of a signed link whose time is over."""
    facts = {"Expires": expires, "ServerTime": server_time}
    return OssError(403, "AccessDenied", "Request has expired.", facts=facts)


def no_such_key(key: str) -> OssError:
    """Say what OSS says of an object that is not there."""
    return OssError(404, "NoSuchKey", "The specified key does not exist.", facts={"Key": key})


def archived(key: str) -> OssError:
    """Say what OSS says of an archived object that was not restored."""
    message = "The operation is not valid for the object's state"
    return OssError(403, "InvalidObjectState", message, facts={"ObjectName": key})


def precondition_failed(condition: str) -> OssError:
    """Say what OSS says when a precondition does not hold."""
    message = "At least one of the pre-conditions you specified did not hold."
    return OssError(412, "PreconditionFailed", message, facts={"Condition": condition})


def invalid_range(header: str, size: int) -> OssError:
    """Say what OSS says of a range that selects nothing (RFC 9110 §15.5.17)."""
    return OssError(
        416,
        "InvalidRange",
        "The requested range cannot be satisfied",
        facts={"ActualObjectSize": str(size), "RangeHeader": header},
        headers={"Content-Range": f"bytes */{size}"},
    )


def method_not_allowed(method: str) -> OssError:
    """Say what OSS says of a method that it does not take here."""
    message = "The specified method is not allowed against this resource."
    return OssError(
        405, "MethodNotAllowed", message, facts={"Method": method}, headers={"Allow": "GET, HEAD"}
    )
