"""What a path asks for: a chat, the list of models, or anything else under /v1/."""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.presets import NAME

MODEL_ID = re.compile(r"[A-Za-z0-9._:@-]{1,200}")
# What a stored credential is never used for: these speak of the account, not of a chat.
PRIVATE = re.compile(r"/v1/(oauth|organizations|account|accounts|me|api_keys|profile|users)(/|$)", re.I)
ODD = re.compile(r"//|/\.|\.\.|[%\\;]")  # spellings of a path that the upstream may read as another one


@dataclass(frozen=True)
class Door:
    """What a path asks for: a chat (or only its token count), the list of models, or anything else under /v1/."""

    kind: str  # messages · models · other
    persona: str = ""
    counting: bool = False
    model: str = ""


def find_door(path: str, query: str = "") -> Door | None:
    """The door a request's raw path and query string lead to; None for no address of ours.

    Front ends append /messages to whatever their user typed (seen with SillyTavern 1.19.0), so a missing or doubled
    part is forgiven, and so is `?persona=NAME/messages`. A name with dots or % is no persona's.
    """
    parts = [part for part in path.split("/") if part]
    if parts == ["v1"] and (
        swallowed := re.fullmatch(r"persona=([A-Za-z0-9_-]{1,64})/(messages(?:/count_tokens)?)", query)
    ):
        parts = ["v1", swallowed[1], *swallowed[2].split("/")]
    versioned = "v1" in parts[:2]
    parts = [part for i, part in enumerate(parts) if part != "v1" or i > 2]  # clients that add /v1 by themselves
    rest = list(parts)
    counting = rest[-1:] == ["count_tokens"]
    if counting:
        rest.pop()
    named = len(rest)
    while rest[-1:] == ["messages"]:
        rest.pop()
    if named > len(rest) and len(rest) <= 1:
        return Door("messages", persona="".join(rest), counting=counting)
    if parts == ["models"] or (len(parts) == 2 and parts[1] == "models" and NAME.fullmatch(parts[0])):
        return Door("models", persona=parts[0] if len(parts) == 2 else "")
    if len(parts) == 2 and parts[0] == "models":
        return Door("models", model=parts[1]) if MODEL_ID.fullmatch(parts[1]) else None
    return Door("other") if versioned and parts else None
