"""The gate before every route: which requests may come in at all, and how every error looks that goes out.

On loopback no key is asked for, yet every web page the owner opens can reach the port. Four checks stand against that,
each enough alone: Host (DNS rebinding), Origin, Sec-Fetch, and the content type (no "simple" requests).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import orjson
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.typedefs import Handler

from server.errors import ProxyError
from server.logs import frames
from server.owner import Headers, Owner, cookies_of
from server.receipt import new_id

log = logging.getLogger(__name__)

RefusalPage = Callable[[web.Request, ProxyError], web.Response]
TurnedAway = Callable[[ProxyError], str]  # notes a chat that came no further than the gate; the id of its receipt

REQUEST_ID = web.RequestKey("request_id", str)
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
SINGLE = ("x-api-key", hdrs.AUTHORIZATION, hdrs.CONTENT_TYPE)
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
DAMAGED = "The body of the request is damaged: it could not be unpacked. Try again."
TOO_LARGE = "The request is larger than 32 MB. Remove pictures from the chat or lower the context size."
PACKED = "The body of the request is packed in a way the proxy cannot read. Send it unpacked."
CLOSE = {"Connection": "close"}
MAX_HEADERS = 64 * 1024  # bytes
EXPOSED = "x-receipt, request-id, retry-after"


class Audience(Enum):
    """Who a route is for."""

    OPEN = "everybody: no secrets, nothing to change"
    PAGE = "the owner, with a browser"
    OWNER = "the owner, with a browser or a program: JSON"
    FRONT = "front ends; whether they need a client key is for clients.py to say"


OPEN_ROUTES = frozenset({"/health", "/auth/status", "/static/{name}", "/favicon.ico", "/me"})
# These look after themselves: one redeems a link or asks for the session, the other is bound by a cookie of its own.
SELF_KEPT_PAGES = frozenset({"/auth/login", "/auth/callback"})
SELF_KEPT = SELF_KEPT_PAGES | {"/metrics"}  # the owner, or the token of a setting
OWNER_PAGES = frozenset(
    {"/", "/requests", "/requests/{id}", "/spending", "/chats", "/accounts", "/keys", "/settings", "/doctor"}
    | {"/personas", "/personas/{name}", "/new-persona"}
)
# Takes a client key, of which it tells; clients.py finds the key.
KEY_ROUTES = frozenset({"/api/me"})


def audience_of(canonical: str) -> Audience:
    """Whom a matched route is for, by the pattern it was declared with: no spelling of a path can talk its way past."""
    if canonical in OPEN_ROUTES or canonical in SELF_KEPT:
        return Audience.OPEN
    if canonical in OWNER_PAGES:
        return Audience.PAGE
    if canonical in KEY_ROUTES:
        return Audience.FRONT
    return Audience.OWNER if canonical.startswith(("/api/", "/auth/")) else Audience.FRONT


@dataclass(frozen=True)
class Rules:
    """The names this server answers to (each Host value with the Origin of a page of ours there), and the web pages
    that may call it although they are not ours."""

    hosts: Mapping[str, str]
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, port: int, host: str = "", allowed_hosts: Collection[str] = (), allowed_origins: Collection[str] = ()
    ) -> Rules:
        """`port` is the one listened on; a listed name may carry another (a container's port mapped elsewhere)."""
        bound = () if host in ("", "0.0.0.0", "::") else (host,)  # noqa: S104
        names = [in_brackets(name.lower()) for name in (*LOOPBACK, *bound, *allowed_hosts)]
        hosts = names + [f"{name}:{port}" for name in names if not has_port(name)]
        return cls(
            MappingProxyType({name: f"http://{name}" for name in hosts}),
            frozenset(origin.lower() for origin in allowed_origins),
        )


def in_brackets(name: str) -> str:
    """An IPv6 address as URLs write it."""
    return f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name


def has_port(name: str) -> bool:
    return ":" in name.rpartition("]")[2]


# The checks: each over what the request says, each None or the error.


def wrong_host(rules: Rules, headers: Headers, target: str) -> ProxyError | None:
    """Not for us: any name but those listed. A page on a rebound name carries that name in Host."""
    given = headers.getall(hdrs.HOST, ())
    if len(given) != 1:
        return ProxyError(400, "A request must carry exactly one Host header.")
    host = given[0]
    if target[:1] != "/" and target != "*" and authority(target).lower() != host.lower():
        return ProxyError(400, "The address in the request line and the Host header differ.")
    if host in rules.hosts or host.lower() in rules.hosts:
        return None
    here = next((url for name, url in rules.hosts.items() if name.startswith("localhost:")), "http://localhost")
    return ProxyError(
        403,
        f"This proxy does not answer to the name in this address. Use {here}, "
        "or add the name to the setting allowed_hosts.",
    )


def authority(target: str) -> str:
    """host:port of a request target in absolute form (http://host:port/path)."""
    rest = target.partition("://")[2]
    return rest.partition("/")[0].partition("?")[0]


def foreign_origin(rules: Rules, audience: Audience, headers: Headers) -> ProxyError | None:
    """A web page that is neither ours nor on the owner's list.

    The list opens the owner's own routes only to a page under the very name the request came to: ours, behind TLS.
    """
    given = headers.getall(hdrs.ORIGIN, ())
    if not given:
        return None
    host = headers.get(hdrs.HOST, "").lower()
    if len(given) == 1 and given[0] == rules.hosts.get(host):
        return None
    if is_listed(rules, headers) and (audience is Audience.FRONT or given[0].partition("://")[2] == host):
        return None
    return ProxyError(
        403,
        "A web page that is not part of this proxy tried to use it. If it is your front end, "
        "add its address to the setting allowed_origins.",
    )


def is_listed(rules: Rules, headers: Headers) -> bool:
    if not rules.origins:
        return False
    given = headers.getall(hdrs.ORIGIN, ())
    return len(given) == 1 and given[0] in rules.origins


def foreign_fetch(rules: Rules, audience: Audience, method: str, headers: Headers) -> ProxyError | None:
    """What the browser itself says about the page that asks (Fetch Metadata). Values are judged, not presence: Node's
    fetch sends `Sec-Fetch-Mode: cors` alone, node-fetch and curl send nothing.

    Opening a page from elsewhere is no attack: it changes nothing, and comes without the session cookie.
    """
    site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
    if site is None and mode is None:
        return None
    from_elsewhere = site in ("cross-site", "same-site")
    if audience in (Audience.PAGE, Audience.OPEN):
        opened = method == "GET" and mode == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
        refused = from_elsewhere and not opened
    else:
        refused = mode == "no-cors" or (from_elsewhere and not is_listed(rules, headers))
    if not refused:
        return None
    return ProxyError(403, "A web page from elsewhere tried to use this proxy, says the browser. Nothing was done.")


def unreadable(request: web.Request) -> ProxyError | None:
    """What aiohttp takes although it does not speak it: other versions of HTTP, tunnels, codings it leaves undone,
    endless headers (seen with 3.14.5)."""
    if request.version not in (HttpVersion10, HttpVersion11):
        return ProxyError(400, "This proxy speaks HTTP/1.1 only.", headers=CLOSE)
    if request.method == "CONNECT":
        return ProxyError(405, "This proxy opens no tunnels.", headers={**CLOSE, "Allow": "GET, POST"})
    coding = request.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and (coding.strip().lower() != "chunked" or request.version == HttpVersion10):
        return ProxyError(400, "The header Transfer-Encoding can only be chunked, in HTTP/1.1.", headers=CLOSE)
    if sum(len(name) + len(value) for name, value in request.raw_headers) > MAX_HEADERS:
        return ProxyError(431, "The headers of the request are larger than 64 KiB.")
    packing = request.headers.get(hdrs.CONTENT_ENCODING)
    if packing is not None and packing.strip().lower() not in ("identity", "gzip", "deflate"):
        return ProxyError(415, PACKED)
    return None


def doubled(headers: Headers) -> ProxyError | None:
    """One header checked here and its twin used upstream: not with us."""
    for name in SINGLE:
        if name in headers and len(headers.getall(name)) > 1:
            return ProxyError(400, f"The header {name.lower()} came twice. Send it once.")
    return None


def wrong_type(headers: Headers) -> ProxyError | None:
    """415 for anything but JSON in UTF-8: what a page can send without asking first is never that."""
    given = headers.get(hdrs.CONTENT_TYPE, "")
    if given == "application/json":
        return None
    kind, *parameters = (part.strip() for part in given.lower().split(";"))
    charsets = [p.removeprefix("charset=").strip('"') for p in parameters if p.startswith("charset=")]
    if kind == "application/json" and all(c in ("utf-8", "utf8") for c in charsets):
        return None
    return ProxyError(415, "The body must be sent as “Content-Type: application/json” in UTF-8.")


def simple_type(headers: Headers) -> ProxyError | None:
    """415 for the types of plain web forms, and for none: no route of the API takes them."""
    kind = headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    return wrong_type(headers) if kind in ("", "text/plain", "application/x-www-form-urlencoded") else None


def is_chat(path: str) -> bool:
    """A messages or count_tokens route in any of its forgiven spellings."""
    return path.rstrip("/").endswith(("/messages", "/count_tokens"))


def preflight(rules: Rules, headers: Headers) -> dict[str, str] | None:
    """The headers that answer a listed page's preflight; None for any other page's."""
    if not is_listed(rules, headers):
        return None
    wanted = [name.strip().lower() for name in headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").split(",")]
    names = [name for name in wanted if name and name.replace("-", "").isalnum() and name.isascii()]
    allowed: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: headers[hdrs.ORIGIN],
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ", ".join(names),
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
        hdrs.VARY: "Origin",
    }
    if headers.get("access-control-request-private-network") == "true":
        allowed["access-control-allow-private-network"] = "true"
    return allowed


# The errors that go out.


def error_response(error: ProxyError, request_id: str) -> web.Response:
    """An error of ours as Anthropic would send it."""
    response = web.Response(
        status=error.status,
        headers={**error.headers, "request-id": request_id},
        body=orjson.dumps(error.body(request_id)),
        content_type="application/json",
    )
    if response.headers.get(hdrs.CONNECTION) == "close":
        response.force_close()  # aiohttp does not look at the header
    return response


def translated(error: web.HTTPException) -> ProxyError:
    """The framework's own error in our shape."""
    allow = error.headers.get(hdrs.ALLOW, "").replace(",", ", ")
    words = {
        404: "There is nothing at this address. Front ends use /v1/messages and /v1/models; the page for people is /.",
        405: f"This address takes {allow} only.",
        413: TOO_LARGE,
        417: "The header Expect can only ask for 100-continue.",
    }
    message = words.get(error.status, f"The request was refused: {error.reason}.")
    return ProxyError(error.status, message, headers={"allow": allow} if allow else None)


class Guard:
    """The outermost middleware, and its answer to `Expect: 100-continue`, which aiohttp gives before any middleware."""

    def __init__(self, rules: Rules, owner: Owner, refusal_page: RefusalPage, turned_away: TurnedAway) -> None:
        self.rules = rules
        self._owner = owner
        self._refusal_page = refusal_page
        self._turned_away = turned_away
        self._audiences: dict[str, Audience] = {}

    def audience(self, request: web.Request) -> Audience:
        resource = request.match_info.route.resource
        canonical = "" if resource is None else resource.canonical
        known = self._audiences.get(canonical)
        if known is None:
            known = self._audiences[canonical] = audience_of(canonical)
        return known

    def refusal(self, request: web.Request, audience: Audience) -> ProxyError | None:
        """The first check that fails, cheapest and most telling first."""
        headers, method = request.headers, request.method
        return (
            unreadable(request)
            or wrong_host(self.rules, headers, request.raw_path)
            or foreign_origin(self.rules, audience, headers)
            or foreign_fetch(self.rules, audience, method, headers)
            or doubled(headers)
            or (self._refused_type(request, audience) if method in WRITES else None)
            or (self._not_the_owner(headers) if audience in (Audience.OWNER, Audience.PAGE) else None)
        )

    def _refused_type(self, request: web.Request, audience: Audience) -> ProxyError | None:
        if audience is Audience.FRONT and request.method == "POST" and is_chat(request.path):
            return wrong_type(request.headers)
        if not request.body_exists:
            return None
        return simple_type(request.headers) if audience is Audience.FRONT else wrong_type(request.headers)

    def _not_the_owner(self, headers: Headers) -> ProxyError | None:
        return self._owner.refusal(cookies_of(headers), headers.get(hdrs.AUTHORIZATION, ""))

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        audience = self.audience(request)
        try:
            if request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
                return self._preflight(request)
            if refusal := self.refusal(request, audience):
                raise refusal
            return await handler(request)
        except ProxyError as error:
            refused = error
        except web.HTTPException as error:
            if error.status < 400:
                raise
            refused = translated(error)
        except web.RequestPayloadError:
            refused = ProxyError(400, DAMAGED)
        except ConnectionError:
            raise  # the client has left
        except Exception as error:
            request_id = request[REQUEST_ID] = request.get(REQUEST_ID) or new_id()
            log.error("%s: %s %s: %s", request_id, request.method, audience.name, frames(error))
            refused = ProxyError(500, f"Something went wrong inside the proxy; its log says more under {request_id}.")
        return self._answer(request, audience, refused)

    async def expect(self, request: web.Request) -> web.StreamResponse | None:
        """Answer `Expect` after the checks, so that a refusal comes before the body."""
        audience = self.audience(request)
        error = self.refusal(request, audience)
        if error is None and request.headers[hdrs.EXPECT].lower() != "100-continue":
            error = translated(web.HTTPExpectationFailed())
        if error is not None:
            return self._answer(request, audience, error)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp's own handler does: the answer has not begun
        return None

    def _answer(self, request: web.Request, audience: Audience, error: ProxyError) -> web.Response:
        if request.writer.output_size > 0:
            raise ConnectionError("the reply had begun")  # closing the connection is all that is left
        resource = request.match_info.route.resource
        for_eyes = audience is Audience.PAGE or (resource is not None and resource.canonical in SELF_KEPT_PAGES)
        if for_eyes and "text/html" in request.headers.get(hdrs.ACCEPT, ""):
            return self._refusal_page(request, error)
        request_id = request.get(REQUEST_ID)
        if audience is Audience.FRONT and request.method == "POST" and is_chat(request.path):
            request_id = request_id or self._turned_away(error)
            error.headers["x-receipt"] = request_id
        return error_response(error, error.headers.get("request-id") or request_id or new_id())

    def _preflight(self, request: web.Request) -> web.Response:
        refusal = wrong_host(self.rules, request.headers, request.raw_path)
        allowed = preflight(self.rules, request.headers)
        if refusal or allowed is None or request.path.startswith(("/api", "/auth")):
            raise refusal or ProxyError(403, "This web page may not use the proxy; see the setting allowed_origins.")
        return web.Response(status=204, headers=allowed)

    async def allow_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        """Streams send their head from within the handler, so listed pages get their leave here."""
        response.headers[hdrs.VARY] = "Origin"
        if is_listed(self.rules, request.headers):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED


GUARD = web.AppKey("guard", Guard)


def attach(
    app: web.Application, rules: Rules, owner: Owner, refusal_page: RefusalPage, turned_away: TurnedAway
) -> None:
    """Put the guard before everything else in `app`."""
    guard = app[GUARD] = Guard(rules, owner, refusal_page, turned_away)
    app.middlewares.insert(0, guard.middleware)
    if rules.origins:
        app.on_response_prepare.append(guard.allow_origin)


async def expect(request: web.Request) -> web.StreamResponse | None:
    """The guard's answer to `Expect`, for a route's `expect_handler`."""
    return await request.app[GUARD].expect(request)
