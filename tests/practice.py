"""The practice upstream's rules as tests ask them, and bodies to ask with."""

import base64
import struct
from datetime import UTC, datetime

import pytest

from server.models import Models
from server.practice.rules import refusal
from tests.steps import HELLO

MODELS = Models.load()
BY_ID = {name: model for model in MODELS.all for name in (model.id, *model.aliases)}
NOW = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
OLD, NEW = "2023-06-01", "2026-10-21"

# Anthropic's restrictions per model as published by November 2026, written down here once more, apart from the table
# that the program uses: samplers taken, prefill, thinking types, forced tools, system messages, effort levels.
RESTRICTIONS = """
claude-fable-5-2  | none | -       | adaptive                  | -      | system | low medium high xhigh max
claude-fable-5-1  | none | -       | adaptive                  | -      | system | low medium high xhigh max
claude-mythos-5-1 | none | -       | adaptive                  | -      | system | low medium high xhigh max
claude-fable-5    | none | -       | adaptive                  | forced | system | low medium high xhigh max
claude-opus-5-5   | none | -       | adaptive                  | -      | system | low medium high xhigh max
claude-sonnet-5-5 | none | -       | adaptive between_tools    | -      | system | low medium high xhigh max
claude-haiku-5-5  | none | -       | adaptive disabled         | forced | system | low medium high xhigh max
claude-opus-5     | none | -       | adaptive disabled         | forced | system | low medium high xhigh max
claude-sonnet-5   | none | -       | adaptive disabled         | forced | -      | low medium high xhigh max
claude-opus-4-8   | none | -       | adaptive disabled         | forced | system | low medium high xhigh max
claude-opus-4-7   | none | -       | adaptive disabled         | forced | -      | low medium high xhigh max
claude-opus-4-6   | one  | -       | adaptive enabled disabled | forced | -      | low medium high max
claude-sonnet-4-6 | one  | -       | adaptive enabled disabled | forced | -      | low medium high max
claude-opus-4-5   | one  | prefill | enabled disabled          | forced | -      | low medium high
claude-sonnet-4-5 | one  | prefill | enabled disabled          | forced | -      |
claude-haiku-4-5  | one  | prefill | enabled disabled          | forced | -      |
"""
COLUMNS = ("sampling", "prefill", "thinking", "forced", "system", "efforts")
TABLE = {
    name: dict(zip(COLUMNS, cells, strict=True))
    for name, *cells in ([cell.strip() for cell in line.split("|")] for line in RESTRICTIONS.strip().splitlines())
}
EVERY_MODEL = pytest.mark.parametrize("model", TABLE)
THINKING = {
    "adaptive": {"type": "adaptive"},
    "enabled": {"type": "enabled", "budget_tokens": 1_024},
    "disabled": {"type": "disabled"},
    "between_tools": {"type": "between_tools"},
}
TOOL = {"name": "dice", "input_schema": {"type": "object"}}
CALL = {"type": "tool_use", "id": "t1", "name": "dice", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "6"}
FORCED = {"type": "any"}
ENABLED = THINKING["enabled"]


def mark(lifetime="5m"):
    return {"cache_control": {"type": "ephemeral", "ttl": lifetime}}


def ask(model="claude-opus-4-5", **changes):
    return {"model": model, "max_tokens": 2_000, "messages": [HELLO], **changes}


def refused(body, version=OLD, betas="", kind="api_key", counting=False, now=NOW):
    """The refusal's (status, type, text), None if the request is accepted."""
    headers = {"anthropic-version": version, "anthropic-beta": betas}
    return refusal(body, headers, BY_ID.get(body.get("model")), kind, now, counting=counting)


def said(body, **more):
    """The text of a 400, "" if the request is accepted."""
    found = refused(body, **more)
    assert found is None or found[:2] == (400, "invalid_request_error")
    return found.message if found else ""


def document(**more):
    return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}, **more}


def png(width=10, height=10):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"


def gif(width=10, height=10):
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0"


def jpeg(width=10, height=10, before=b""):
    return b"\xff\xd8" + before + b"\xff\xc0" + struct.pack(">HBHH", 17, 8, height, width) + b"\0" * 12


def webp(width=10, height=10):
    return b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def image(data, media_type="image/png"):
    encoded = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": encoded}}
