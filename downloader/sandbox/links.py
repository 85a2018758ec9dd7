"""Signed links as Aliyun OSS makes them (signature version 1 in the query), made and checked."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlencode

from downloader.sandbox import oss_errors
from downloader.sandbox.oss_errors import OssError

__all__ = ["LinkSigner"]

_REQUIRED = {"Expires", "OSSAccessKeyId", "Signature"}
_ALLOWED = _REQUIRED | {"security-token"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSigner:
    """Makes links to the objects of one bucket, and tells whether a link is one of them."""

    bucket: str
    access_key_id: str = field(repr=False)
    access_key_secret: str = field(repr=False)
    clock: Callable[[], datetime]

    def query(
        self, key: str, *, lifetime: float, method: str = "GET", security_token: str | None = None
    ) -> str:
        """Return the query of a link that is good for `lifetime` seconds from now."""
        expires = str(int(self.clock().timestamp() + lifetime))
        members = {"Expires": expires, "OSSAccessKeyId": self.access_key_id}
        signature = self._signature(self._text(method, key, expires, security_token))
        members["Signature"] = signature
        if security_token is not None:
            members["security-token"] = security_token
        return urlencode(members, quote_via=quote, safe="")

    def check(self, method: str, key: str, query: str) -> None:
        """Raise the error that the store answers with, unless the link is a good one."""
        members = self._members(query)
        self._check_expires(members["Expires"])
        if members["OSSAccessKeyId"] != self.access_key_id:
            message = "The OSS Access Key Id you provided does not exist in our records."
            raise OssError(403, "InvalidAccessKeyId", message)
        text = self._text(method, key, members["Expires"], members.get("security-token"))
        if not hmac.compare_digest(self._signature(text).encode(), members["Signature"].encode()):
            raise self._mismatch(members, text)

    def _members(self, query: str) -> dict[str, str]:
        if not query:
            message = "You have no right to access this object because of bucket acl."
            raise OssError(403, "AccessDenied", message)
        pairs = parse_qsl(query, keep_blank_values=True)
        members = dict(pairs)
        if len(members) != len(pairs) or not members.keys() <= _ALLOWED:
            message = "The query has a parameter twice, or one that a link does not have."
            raise OssError(400, "InvalidArgument", message)
        if not members.keys() >= _REQUIRED:
            message = "Query-string authentication requires the Signature, Expires and "
            raise OssError(403, "AccessDenied", f"{message}OSSAccessKeyId parameters")
        return members

    def _check_expires(self, expires: str) -> None:
        if not (expires.isascii() and expires.isdigit()):
            message = f"Invalid date (should be seconds since epoch): {expires}"
            raise OssError(403, "AccessDenied", message)
        now = self.clock()
        if now.timestamp() > int(expires[:18]):
            try:
                written = _iso(datetime.fromtimestamp(int(expires[:18]), UTC))
            except (ValueError, OverflowError):
                written = expires
            raise oss_errors.expired(written, _iso(now))

    def _mismatch(self, members: dict[str, str], text: str) -> OssError:
        # The real store quotes all of this, so whoever logs its body as it is leaks it.
        facts = {
            "OSSAccessKeyId": members["OSSAccessKeyId"],
            "SignatureProvided": members["Signature"],
            "StringToSign": text,
        }
        message = "The request signature we calculated does not match the signature you provided. "
        message += "Check your key and signing method."
        return OssError(403, "SignatureDoesNotMatch", message, facts=facts)

    def _text(self, method: str, key: str, expires: str, security_token: str | None) -> str:
        resource = f"/{self.bucket}/{key}"
        if security_token is not None:  # a sub-resource, so it is signed too
            resource += f"?security-token={security_token}"
        return f"{method}\n\n\n{expires}\n{resource}"

    def _signature(self, text: str) -> str:
        digest = hmac.new(self.access_key_secret.encode(), text.encode(), hashlib.sha1).digest()
        return base64.b64encode(digest).decode()


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
