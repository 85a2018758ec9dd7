"""Parameters and secret become a signature; pure, pinned by vectors of the vendor's own code."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import quote

__all__ = ["sign", "string_to_sign"]

# The vendor's fixed prefix, where other signing schemes put the HTTP method.
PREFIX = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ&"


def string_to_sign(params: Mapping[str, object]) -> str:
    """Return the text that is signed: sorted, percent-encoded twice, behind the prefix.

    `sign` itself and parameters that are None take no part; other values count as their `str()`.
    """
    counted = {
        name: str(value) for name, value in params.items() if name != "sign" and value is not None
    }
    # Code point order, which is how Python sorts text, is also the byte order of UTF-8.
    pairs = "&".join(f"{_encode(name)}={_encode(counted[name])}" for name in sorted(counted))
    return PREFIX + _encode(pairs)


def sign(params: Mapping[str, object], app_secret: str) -> str:
    """Return the platform's signature of the parameters: base64 of an HMAC-SHA1."""
    key = f"{app_secret}&".encode()
    digest = hmac.new(key, string_to_sign(params).encode(), hashlib.sha1).digest()
    return base64.b64encode(digest).decode("ascii")


def _encode(text: str) -> str:
    """Percent-encode all but RFC 3986's unreserved characters."""
    return quote(text, safe="")
