"""The personas: see, write, try; and what is wrong with a damaged file."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import hdrs, web

from server.cache_helps import NO_HELPS
from server.errors import ProxyError
from server.pages.cache_helps import help_rows
from server.pages.page import CONFIG, PERSONAS, answer, owner_page, route
from server.presets import LARGEST, TEXTS, Persona, PersonaError, read_persona


def routes() -> list[web.RouteDef]:
    return [
        route("GET", "/personas", personas_page),
        route("GET", "/personas/{name}", persona_page),
        route("GET", "/new-persona", new_page),
        route("POST", "/api/personas/{name}", save),
        route("PUT", "/api/personas/{name}", save),
        route("DELETE", "/api/personas/{name}", remove),
    ]


async def personas_page(request: web.Request) -> web.Response:
    """GET /personas"""
    presets = request.app[PERSONAS]
    return owner_page(
        request,
        "personas.html",
        personas=presets.all(),
        damaged=sorted(presets.problems),
        address=f"http://{request.headers[hdrs.HOST]}/v1",
    )


async def persona_page(request: web.Request) -> web.Response:
    """GET /personas/{name}: the form; for a damaged file its text."""
    presets, name = request.app[PERSONAS], request.match_info["name"]
    presets.look_again()
    text = await asyncio.to_thread(presets.text, name)
    if not text:
        raise ProxyError(404, "There is no persona of this name, or its file is empty.")
    try:
        return form(request, read_persona(name, text))
    except PersonaError:
        return form(request, Persona(name), damaged=text)


async def new_page(request: web.Request) -> web.Response:
    """GET /new-persona"""
    return form(request, Persona(""))


def form(request: web.Request, persona: Persona, *, damaged: str = "") -> web.Response:
    settings = orjson.dumps(dict(persona.settings), option=orjson.OPT_INDENT_2).decode() if persona.settings else ""
    return owner_page(
        request,
        "persona.html",
        persona=persona,
        fields=TEXTS,
        settings=settings,
        helps=list(help_rows(request.app[CONFIG])),
        chosen=persona.helps.public(),
        any_chosen=persona.helps != NO_HELPS,
        damaged=damaged,
        room="/personas",
    )


async def save(request: web.Request) -> web.Response:
    """PUT /api/personas/{name}, or POST for one that must be new: the body is the file's text."""
    presets, name = request.app[PERSONAS], request.match_info["name"]
    presets.look_again()
    if request.method == "POST" and presets.path(name).exists():
        raise ProxyError(409, f"There is a persona “{name}” already. Choose another name, or change that one.")
    raw = await request.read()
    if len(raw) > LARGEST:
        raise ProxyError(413, "The persona is larger than 1 MB. Shorten its texts.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ProxyError(400, "The persona is not UTF-8 text.") from None
    persona = await asyncio.to_thread(presets.save, name, text)
    return answer({"name": persona.name, "title": persona.title})


async def remove(request: web.Request) -> web.Response:
    """DELETE /api/personas/{name}"""
    await asyncio.to_thread(request.app[PERSONAS].remove, request.match_info["name"])
    return web.Response(status=204)
