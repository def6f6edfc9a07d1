"""What every page shares: what it is given, how it is rendered, and the headers that keep it safe."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from server import __version__
from server.accounts import Accounts
from server.attempt import KeyCheck
from server.config import Config
from server.errors import ProxyError
from server.guard import expect
from server.owner import ASK_THE_OWNER, Owner
from server.pages import figures
from server.pages.words import WORDS
from server.presets import Personas
from server.request import read_json
from server.signin import SignIn

if TYPE_CHECKING:
    from minijinja import Environment

HERE = Path(__file__).parent
T = TypeVar("T")
MAX_NAME = 80  # characters


@dataclass(frozen=True)
class Password:
    """What a front end's password field needs now; `key` is the one key that may be shown to the owner, if any."""

    needed: bool = False
    key: str = ""


ACCOUNTS = web.AppKey("accounts", Accounts)
SIGNIN = web.AppKey("signin", SignIn)
OWNER = web.AppKey("owner", Owner)
CONFIG = web.AppKey("config", Config)
PORT = web.AppKey("port", int)
PASSWORD = web.AppKey[Callable[[], Password]]("password")
PERSONAS = web.AppKey("personas", Personas)
WARNINGS = web.AppKey[Callable[[], Iterable[str]]]("warnings")
# Where settings come from: config.txt, .env, the environment.
PLACES = web.AppKey[tuple[Path, Path, Mapping[str, str]]]("places")
# Looks at everything that usually goes wrong. Blocks: for a thread.
EXAMINE = web.AppKey[Callable[[], Iterable[Any]]]("examine")
# Tries an API key at a base URL: what came of it, and the words about that.
CHECK_KEY = web.AppKey[Callable[[str, str], Awaitable[tuple[KeyCheck, str]]]]("check_key")
FINISHING = web.AppKey[set[asyncio.Task[Any]]]("finishing")

# The rooms of the dashboard in the order of the navigation; behind “More” those that are visited now and then.
ROOMS = {"/": "now", "/requests": "requests", "/spending": "spending", "/accounts": "accounts", "/keys": "keys"}
MORE_ROOMS = {"/chats": "chats", "/personas": "personas", "/settings": "settings", "/doctor": "doctor"}

SAFE = {
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.X_CONTENT_TYPE_OPTIONS: "nosniff",
}
SAFE_PAGE = SAFE | {
    hdrs.CONTENT_SECURITY_POLICY: (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "Referrer-Policy": "same-origin",  # a one-time link in the address is no other site's business
}
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@cache
def templates() -> Environment:
    """Made at the first page, so that the start does not wait for it."""
    from minijinja import Environment

    return Environment(
        loader=lambda name: (HERE / "templates" / name).read_text(encoding="utf-8"),
        undefined_behavior="strict",
        trim_blocks=True,
        lstrip_blocks=True,
        globals={"w": WORDS, "version": __version__, "static": static_address},
        filters={
            "money": figures.money,
            "number": figures.number,
            "part": figures.part,
            "share": figures.share,
            "span": figures.span,
        },
    )


@cache
def static_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (HERE / "static").iterdir() if path.suffix in TYPES}


def static_address(name: str) -> str:
    """The address of a static file, new whenever its content is."""
    return f"/static/{name}?v={hashlib.sha256(static_files()[name]).hexdigest()[:10]}"


def route(method: str, path: str, handler: Handler) -> web.RouteDef:
    """A route of these pages: `Expect` is answered after the guard's checks, and HEAD uses nothing up."""
    no_head = {"allow_head": False} if method == "GET" else {}
    return web.route(method, path, handler, expect_handler=expect, **no_head)


async def static(request: web.Request) -> web.Response:
    """GET /static/{name}: looked up among the files there are, never joined to a path."""
    name = request.match_info.get("name", "logo.svg")
    if name not in static_files():
        raise ProxyError(404, "There is no such file.")
    caching = "public, max-age=31536000, immutable" if "v" in request.query else "no-cache"
    headers = {**SAFE, hdrs.CACHE_CONTROL: caching}
    return web.Response(
        body=static_files()[name], content_type=TYPES[Path(name).suffix], charset="utf-8", headers=headers
    )


def page(request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
    """A rendered page. Everything put into it is escaped."""
    words = WORDS["page"]
    room = "/" + request.path.split("/")[1]
    shown = {
        "practice": request.app[CONFIG].practice,
        "warnings": (),
        "here": request.path,
        "nav": False,
        "room": room,
        "rooms": [(path, words[name]) for path, name in ROOMS.items()],
        "more_rooms": [(path, words[name]) for path, name in MORE_ROOMS.items()],
        "more_here": words[MORE_ROOMS[room]] if room in MORE_ROOMS else "",
        **values,
    }
    return web.Response(
        status=status,
        text=templates().render_template(template, **shown),
        content_type="text/html",
        charset="utf-8",
        headers=SAFE_PAGE,
    )


def owner_page(request: web.Request, template: str, **values: Any) -> web.Response:
    """A page of the dashboard, with its navigation and what the owner should know now."""
    return page(request, template, nav=True, warnings=all_warnings(request.app), **values)


def refusal_page(request: web.Request, error: ProxyError) -> web.Response:
    """An error as a person in front of a browser reads it."""
    words = WORDS["refusal"]
    titles = {401: words["not_owner"], 403: words["forbidden"], 404: words["missing"], 429: words["too_many"]}
    response = page(
        request,
        "refusal.html",
        status=error.status,
        title=titles.get(error.status, words["failed"]),
        message=words["ask_owner"] if error.message == ASK_THE_OWNER else error.message,
        how_to_get_in=error.status in (401, 429),
    )
    response.headers.update(error.headers)
    return response


def moving_page(request: web.Request, title: str, message: str, to: str) -> web.Response:
    """A page that moves on by itself. A redirect would not do: its next request counts as coming from the site that led
    here, and the browser would withhold the strict session cookie."""
    return page(request, "moving.html", title=title, message=message, to=to)


def all_warnings(app: web.Application) -> list[str]:
    """Each once: the data folder, for one, is looked at by several."""
    return list(dict.fromkeys([*app[OWNER].warnings, *app[ACCOUNTS].warnings, *app[WARNINGS]()]))


def answer(data: Any, status: int = 200) -> web.Response:
    """A JSON answer of the owner's API."""
    return web.Response(status=status, body=orjson.dumps(data), content_type="application/json", headers=SAFE)


async def read_object(request: web.Request, *fields: str) -> dict[str, Any]:
    """The JSON object a request carries; {} without a body. Raises ProxyError 400, for an unknown field too."""
    raw = await request.read()
    body = read_json(raw)[0] if raw.strip() else {}
    if unknown := sorted(body.keys() - set(fields)):
        raise ProxyError(
            400, f"{unknown[0]}: there is no such field. This address takes {', '.join(fields) or 'none'}."
        )
    return body


def read_name(given: object) -> str:
    """A name that a person has typed. Raises ProxyError 400."""
    if not isinstance(given, str) or len(given) > MAX_NAME or not given.isprintable():
        raise ProxyError(400, f"name: must be text of at most {MAX_NAME} characters, on one line.")
    return given.strip()


async def to_the_end(app: web.Application, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which goes on when the browser leaves: a code that is spent has to end in an account."""
    task = asyncio.ensure_future(work)
    app[FINISHING].add(task)
    task.add_done_callback(app[FINISHING].discard)
    return await asyncio.shield(task)
