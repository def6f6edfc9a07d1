"""Addresses: which of them are this computer, and to which a credential may be sent."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit


def url_problem(url: str) -> str:
    """Why a credential may not be sent to `url`: "" for https anywhere and for http on this computer."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is not a web address"
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        return "is not a web address; it must begin with https://"
    if parts.username is not None or "?" in url or "#" in url:
        return "must be a plain address without user name, ? or #"
    if parts.scheme == "http" and not is_loopback(host):
        return "must begin with https:// (http:// is for this computer only)"
    if is_odd_number(host):
        return "is a number in an unusual form; write it as four numbers with dots"
    if host.rstrip(".") == "metadata.google.internal" or is_link_local(host):
        return "is a link-local address, where no API lives"
    return ""


def base_of(url: str) -> str:
    """An API's address as we put /v1/messages behind it; people type it with and without."""
    return url.strip().rstrip("/").removesuffix("/messages").removesuffix("/v1")


def is_odd_number(host: str) -> bool:
    """Whether the system would take this for an IPv4 address although it is not written as four decimal numbers:
    2852039166, 0xa9fea9fe, 0251.0376.0251.0376."""
    parts = host.rstrip(".").split(".")
    return all(re.fullmatch(r"0x[0-9a-f]*|\d+", part) for part in parts) and not (
        len(parts) == 4 and all(part.isdigit() and part == str(int(part)) for part in parts)
    )


def is_link_local(host: str) -> bool:
    """Whether this is an address of the own wire only, or one under which clouds hand out credentials."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0].rstrip("."))
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_link_local or address == ipaddress.ip_address("fd00:ec2::254")


def is_loopback(host: str) -> bool:
    """Whether a host name or address, as in a URL, is this computer by name or by number."""
    parts = host.split(".")
    number = (
        len(parts) == 4 and parts[0] == "127" and all(p.isdigit() and p == str(int(p)) and int(p) < 256 for p in parts)
    )
    return host in ("localhost", "::1") or number


def from_here(host: str) -> str:
    """The address at which this computer itself reaches a server that listens at `host`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def own_url(host: str, port: int) -> str:
    """The same as a URL, for people; “localhost” may mean 127.0.0.1 alone."""
    name = from_here(host)
    name = "localhost" if name == "127.0.0.1" else f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}"
