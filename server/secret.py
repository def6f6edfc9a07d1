"""Secrets as requests bring them: where they stand in the headers, how they are compared, how much of one is shown."""

from __future__ import annotations

import hmac
from collections.abc import Mapping


def bearer(authorization: str) -> str:
    """The token of an `Authorization: Bearer …` header, or ""."""
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def presented(headers: Mapping[str, str]) -> list[str]:
    """The secrets a request brings, as sent: x-api-key first, then the bearer token."""
    found = headers.get("x-api-key", "").strip(), bearer(headers.get("authorization", ""))
    return [secret for secret in found if secret]


def same(given: str, ours: str) -> bool:
    """Compared in constant time, as bytes: compare_digest refuses text that is not ASCII."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), ours.encode(errors="surrogatepass"))


def ending(key: str) -> str:
    """The last four characters of a key, by which its owner knows it; none of a short one."""
    return key[-4:] if len(key) >= 16 else ""


def struck(text: str, secret: str) -> str:
    """A text of somebody else's, without a secret that it may repeat."""
    return text.replace(secret, f"…{ending(secret)}")
