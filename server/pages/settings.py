"""The settings from their one declaration: what holds, where it comes from, what it means. And the doctor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from aiohttp import web

from server.config import Config, ConfigError, parse, settings_given, show, with_value
from server.errors import ProxyError
from server.files import stamp, why, write_private
from server.pages.page import CONFIG, EXAMINE, PLACES, answer, owner_page, read_object, route
from server.secret import ending

# Where credentials go, who may come in, what is written down: not for whoever sits in front of an open page.
BY_HAND = frozenset(
    {"host", "allowed_hosts", "allowed_origins", "data_dir", "make_first_key", "api_base_url", "claude_config_dir"}
    | {"require_client_key", "record_trace", "metrics_token"}
    | {field.name for field in fields(Config) if field.name.startswith("oauth_")}
)

SECRET = frozenset({"metrics_token"})  # shown by its last four characters


def routes() -> list[web.RouteDef]:
    return [
        route("GET", "/settings", settings_page),
        route("PATCH", "/api/settings", change),
        route("GET", "/doctor", doctor_page),
        route("GET", "/api/doctor", examine),
    ]


async def settings_page(request: web.Request) -> web.Response:
    """GET /settings"""
    try:
        rows, problem = list(setting_rows(request.app)), ""
    except ConfigError as error:
        rows, problem = [], str(error)
    return owner_page(
        request,
        "settings.html",
        settings=rows,
        problem=problem,
        file=request.app[PLACES][0],
        waiting=any(row["waiting"] for row in rows if row["key"] != "practice"),  # which the command demo sets
    )


def setting_rows(app: web.Application) -> Iterator[dict[str, Any]]:
    """Each setting with its value in force, the one the next start finds, and where that comes from.
    Raises ConfigError."""
    config, (file, _, _) = app[CONFIG], app[PLACES]
    given = settings_given(*app[PLACES])
    kinds = get_type_hints(Config)
    for field in fields(Config):
        text, place = given.get(field.name, (show(field.default), ""))
        source = "default" if not place else "file" if place.startswith(file.name) else "elsewhere"
        kind = kinds[field.name]
        choices = ("true", "false") if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
        in_force = show(getattr(config, field.name))
        waiting = not same_value(text, in_force, kind)
        if field.name in SECRET:
            text, in_force = masked(text), masked(in_force)
        yield {
            "key": field.name,
            "meaning": field.metadata["meaning"],
            "in_force": in_force,
            "next": text,
            "default": show(field.default),
            "place": place,
            "source": "default" if source == "file" and text == show(field.default) else source,
            "choices": choices,
            "number": kind is int,
            "by_hand": field.name in BY_HAND,
            "editable": field.name not in BY_HAND and source != "elsewhere",
            "waiting": waiting,
        }


def masked(secret: str) -> str:
    return secret and f"…{ending(secret)}"


def same_value(text: str, in_force: str, kind: Any) -> bool:
    """Whether what a file says is what holds now; a value that would stop the start is not."""
    try:
        return show(parse(text.strip(), kind)) == in_force
    except ValueError:
        return False


async def change(request: web.Request) -> web.Response:
    """PATCH /api/settings {key: text, …}: written into config.txt, in force from the next start."""
    changes = await read_object(request, *(field.name for field in fields(Config)))
    if not changes:
        raise ProxyError(400, "Nothing to change: send {setting: value}.")
    for key, value in changes.items():
        if not isinstance(value, str):
            raise ProxyError(400, f"{key}: must be sent as text.")
        if key in BY_HAND:
            raise ProxyError(
                403,
                f"{key}: decides who may come in, where logins go or what is written down. "
                f"Change it by hand, in {request.app[PLACES][0]}.",
            )
    await asyncio.to_thread(write_settings, request.app[PLACES], changes)
    return answer({"restart_needed": any(row["waiting"] for row in setting_rows(request.app))})


def write_settings(places: Any, changes: dict[str, str]) -> None:
    """Put these values into config.txt, if the program would start with them. Raises ProxyError 400, 409."""
    file, env_file, environ = places
    candidate = file.with_name(f".{file.name}.candidate")
    try:
        given = settings_given(*places)
        before, text = stamp(file), file.read_text(encoding="utf-8-sig") if file.exists() else ""
        for key, value in changes.items():
            _, place = given.get(key, ("", file.name))
            if not place.startswith(file.name):
                raise ProxyError(409, f"{key}: is set in {place}, which goes first. Change it there.")
            text = with_value(text, key, value.strip())
        write_private(candidate, text.encode())
        Config.load(candidate, env_file, environ)
        if stamp(file) != before:
            raise ProxyError(409, f"{file.name} was changed by somebody else just now. Reload the page.")
        write_private(file, text.encode(), like=file.stat() if file.exists() else None)
    except ValueError as error:
        raise ProxyError(400, f"{', '.join(changes)}: {error}.") from None
    except ConfigError as error:
        raise ProxyError(400, str(error).replace(candidate.name, file.name)) from None
    except OSError as error:
        raise ProxyError(
            409, f"{file} cannot be written ({why(error)}). Set PROXY_{next(iter(changes)).upper()} in the environment."
        ) from None
    finally:
        candidate.unlink(missing_ok=True)


async def doctor_page(request: web.Request) -> web.Response:
    """GET /doctor: it looks once the page is there."""
    return owner_page(request, "doctor.html")


async def examine(request: web.Request) -> web.Response:
    """GET /api/doctor"""
    findings = await asyncio.to_thread(lambda: list(request.app[EXAMINE]()))
    return answer({"findings": [{"mark": finding.mark, "what": finding.what} for finding in findings]})
