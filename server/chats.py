"""Which chat a request belongs to: recognised by the story in it, of which keyed digests of lines are kept.

A chat's next request carries what the last one carried, and a little more. So it is the same chat when nearly all of
the last lines of its last request stand in this one: however the front end cuts messages, whoever pays, whatever the
model. What all chats with a character share, the prompts in front, a greeting, does not make two chats one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from server.content import as_blocks

SAME = 0.7  # of the last lines stand in the next request; the rest was edited, or moves about
TAIL = 100  # lines looked for
LINES = 400  # lines looked at: what came since then stands behind the tail
LONGEST = 10_000  # characters of a line looked at
KEPT = 300  # chats that are recognised
DIGEST = 8  # bytes
TEXTS = 2_048  # read and remembered, some 250 bytes each: several long chats, LINES of each


@dataclass(frozen=True)
class Chat:
    """One chat: its random id, the client key it came with, and its last request's last lines, newest first."""

    id: str
    key_id: str
    began_at: float
    last_at: float
    lines: tuple[bytes, ...]

    @cached_property
    def tail(self) -> frozenset[bytes]:
        return frozenset(self.lines[:TAIL])


class Lines:
    """Digests of the lines the player and the model wrote, newest first. Nothing can be read from them.

    A text is read once: it comes back with every turn, and Python's own keyed hash says which it is.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._known: dict[tuple[int, int], tuple[bytes, ...]] = {}

    def of(self, body: Mapping[str, Any]) -> tuple[bytes, ...]:
        return tuple(islice((line for text in written(body) for line in self._in(text)), LINES))

    def _in(self, text: str) -> tuple[bytes, ...]:
        key = (len(text), hash(text))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= TEXTS:
                self._known.clear()
            known = self._known[key] = tuple(self._digests(text))
        return known

    def _digests(self, text: str) -> Iterator[bytes]:
        for line in reversed(text.rsplit("\n", LINES)[-LINES:]):
            if said := line[:LONGEST].strip().encode("utf-8", "surrogatepass"):
                yield hashlib.blake2b(said, digest_size=DIGEST, key=self._secret).digest()


def written(body: Mapping[str, Any]) -> Iterator[str]:
    """The texts of the story, from its end. Instructions of the front end's own, role `system`, are left out."""
    for message in reversed(body["messages"]):
        if message["role"] != "system":
            for block in reversed(as_blocks(message.get("content"))):
                if block.get("type") == "text":
                    yield block["text"]


def likeness(chat: Chat, lines: frozenset[bytes]) -> float:
    """The share of the chat's last lines that stand among these."""
    return len(chat.tail & lines) / len(chat.tail)


class Chats:
    """The chats of late, the one used last at the end."""

    def __init__(self, secret: bytes, known: Iterable[Chat] = ()) -> None:
        self._lines = Lines(hashlib.blake2b(secret, digest_size=32, person=b"chats").digest())
        self._known = OrderedDict((chat.id, chat) for chat in known if chat.lines)

    def recognise(self, body: Mapping[str, Any], key_id: str, now: float) -> Chat | None:
        """The chat of a request, as it stands with it; None for a request without a line of text."""
        lines = self._lines.of(body)
        if not lines:
            return None
        chat = self._same(frozenset(lines), key_id)
        if chat is None:
            chat = Chat(f"chat_{secrets.token_hex(8)}", key_id, now, now, lines)
        else:
            chat = Chat(chat.id, key_id, chat.began_at, now, lines)
        self._known[chat.id] = chat
        self._known.move_to_end(chat.id)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return chat

    def read_ahead(self, body: Mapping[str, Any]) -> None:
        """Read the lines of a large request before it is recognised; a thread may do this."""
        self._lines.of(body)

    def _same(self, lines: frozenset[bytes], key_id: str) -> Chat | None:
        """The most alike; of equals the one used last. Chats of other keys are other people's."""
        most, same = 0.0, None
        for chat in reversed(self._known.values()):
            if chat.key_id == key_id and (share := likeness(chat, lines)) > most:
                most, same = share, chat
                if share == 1:
                    break
        return same if most >= SAME else None
