"""Who asks: client keys, hashed at rest, what each may use, and when one is needed."""

from __future__ import annotations

import hashlib
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from server.budget import NO_LIMITS, Limits
from server.cache_helps import NO_HELPS, CacheHelps
from server.database import opened, set_database_aside
from server.days import rfc3339
from server.errors import ProxyError
from server.files import PRIVATE_FILE, why, write_private
from server.models import Models
from server.secret import presented

log = logging.getLogger(__name__)

PREFIX = "tavern-"
COLUMNS = "id, name, own, limits, models, personas, helps"  # those that make a Client
THERE_ARE_KEYS = "client_keys_in_use"  # an empty file beside the database, as long as there are keys
KEYS_LOST = (
    "The client keys are gone with state.sqlite. Front ends are refused until you make new ones on the page Keys "
    "(or set require_client_key=false)."
)


@dataclass(frozen=True)
class Client:
    """The one who asks: the owner, on this computer or with a key of their own, or a guest with a client key."""

    key_id: str = ""
    name: str = ""
    own: bool = True  # the owner's own key: it may use what serves the owner alone
    limits: Limits = NO_LIMITS
    models: tuple[str, ...] = ()  # that it may use; none: all
    personas: tuple[str, ...] = ()
    helps: CacheHelps = NO_HELPS

    @property
    def is_limited(self) -> bool:
        return self.limits != NO_LIMITS or bool(self.models or self.personas)

    def check_persona(self, persona: str) -> None:
        """Raises ProxyError 403 for another persona than this key may use."""
        if self.personas and persona.lower() not in map(str.lower, self.personas):
            addresses = ", ".join(f"/v1/{name}" for name in self.personas)
            raise ProxyError(403, f"This key is for certain personas only. Let the proxy URL end in {addresses}.")

    def may_use(self, model: str, models: Models) -> bool:
        """Whether this key is for that model, however either is spelt."""
        return not self.models or own_name(model, models) in [own_name(name, models) for name in self.models]

    def check_model(self, model: str, models: Models) -> None:
        """Raises ProxyError 403 for another model than this key may use."""
        if not self.may_use(model, models):
            allowed = [own_name(name, models) for name in self.models]
            raise ProxyError(
                403, f"This key may not use {model}. Choose one of these in your front end: {', '.join(allowed)}."
            )

    def check_models(self, body: Mapping[str, Any], models: Models) -> None:
        """The same for every model that a request names."""
        for model in models_named(body) if self.models else ():
            self.check_model(model, models)


OWNER = Client()


def models_named(body: Mapping[str, Any]) -> Iterator[str]:
    """Every model that a request may be answered by: its own, those of `fallbacks`, and those that tools ask."""
    yield str(body.get("model") or "")
    for listed in (body.get("fallbacks"), body.get("tools")):
        for one in listed if isinstance(listed, list) else [listed]:
            model = one.get("model") if isinstance(one, dict) else one
            if model is not None:
                yield str(model)


def own_name(model: str, models: Models) -> str:
    """A model's own id; as it is where the table does not know it."""
    found = models.find(model)
    return found.id if found else model


def digest(key: str) -> bytes:
    """What is stored of a key: 256 random bits need no slow hash."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def required(setting: str, any_key: bool, beyond_loopback: bool) -> bool:
    """Whether /v1 asks for a client key (setting `require_client_key`)."""
    return setting == "true" or (setting == "auto" and any_key) or beyond_loopback


TABLE = (
    "client_keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, ends_with TEXT NOT NULL, digest BLOB NOT NULL UNIQUE,"
    " created_at REAL NOT NULL, last_used_at REAL, own INTEGER NOT NULL, limits TEXT NOT NULL, models TEXT NOT NULL,"
    " personas TEXT NOT NULL, helps TEXT NOT NULL)"
)


class ClientKeys:
    """The client keys in data_dir/state.sqlite. `require` is the setting require_client_key.

    Where keys were in use and their database is lost, one is still asked for: nobody gets in by that.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        require: str = "auto",
        beyond_loopback: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._require, self._beyond_loopback, self._clock = require, beyond_loopback, clock
        self._first_key_file, self._there_are_keys = data_dir / "first_client_key", data_dir / THERE_ARE_KEYS
        self._any, self._asked = True, (-1, 0)
        self._noted: dict[str, float] = {}  # by key: when its last use was noted last
        path = data_dir / "state.sqlite"
        self._damage = ""
        try:
            if (data_dir / "admin_token").exists() and not (path.exists() and path.stat().st_size):
                self._damage = "state.sqlite is gone or empty. The books begin anew."
            self._db = self._open(path)
        except sqlite3.OperationalError:
            raise  # full, locked or not ours to write: nothing is wrong with what is in it
        except sqlite3.DatabaseError as error:
            aside = set_database_aside(path, clock())
            self._damage = f"state.sqlite was damaged ({error}) and is now {aside.name}. The books begin anew."
            self._db = self._open(path)
        self._lost = self._there_are_keys.exists() and not self.any()
        self._note_whether_any()
        for sentence in self.warnings:
            log.warning("%s", sentence)

    @property
    def warnings(self) -> list[str]:
        """What the owner should know now."""
        return [words for words in (self._damage, self._lost and self.needed and KEYS_LOST) if words]

    def _open(self, path: Path) -> sqlite3.Connection:
        db = opened(path, TABLE, patience=10.0)
        try:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError("its pages do not fit together")
            db.execute("PRAGMA busy_timeout=500")  # from now on whoever waits for it holds up every request
        except sqlite3.Error:
            db.close()
            raise
        return db

    def close(self) -> None:
        self._db.close()

    def first_key(self, *, make: bool = False) -> str:
        """The key that a container's first start makes, since it listens beyond loopback by nature.

        It is kept in an owner-only file, so that the start page can show it. "" when there is none, or it was revoked.
        """
        try:
            key = self._first_key_file.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            key = ""
        if key and self.find(key):
            return key
        if not make or self.any():
            return ""
        _, key = self.make("first key", own=True)
        write_private(self._first_key_file, f"{key}\n".encode())
        return key

    def any(self) -> bool:
        """Whether there is a key; yes while the database cannot be read, so that in doubt one is asked for.

        Each request asks, so the answer holds for a second, or until this process changes something.
        """
        try:
            asked = self._db.total_changes, int(time.monotonic())
            if asked != self._asked:
                self._any = self._db.execute("SELECT 1 FROM client_keys LIMIT 1").fetchone() is not None
                self._asked = asked
            return self._any
        except sqlite3.Error as error:
            log.warning("The client keys cannot be read: %s", error)
            return True

    @property
    def needed(self) -> bool:
        """Whether front ends must bring a key."""
        return required(self._require, self._lost or self.any(), self._beyond_loopback)

    def make(self, name: str, *, own: bool = False, **may_use: Any) -> tuple[dict[str, Any], str]:
        """A new key: its row, and the key itself, shown this once. `own`: for the owner's own front ends; `may_use`:
        limits, models, personas and helps of its Client."""
        key = PREFIX + secrets.token_urlsafe(32)
        client = Client(f"key_{secrets.token_hex(6)}", name, own, **may_use)
        self._change(
            f"INSERT INTO client_keys ({COLUMNS}, ends_with, digest, created_at)"  # noqa: S608
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*as_row(client), key[-4:], digest(key), self._clock()),
        )
        self._lost = False
        self._note_whether_any()
        return self.row(client.key_id), key

    def rows(self) -> list[dict[str, Any]]:
        """The rows of GET /api/keys, oldest first."""
        found = self._db.execute(
            f"SELECT {COLUMNS}, ends_with, created_at, last_used_at FROM client_keys ORDER BY created_at"  # noqa: S608
        ).fetchall()
        return [
            {
                "id": client.key_id,
                "name": client.name,
                "ends_with": ends_with,
                "created_at": rfc3339(made),
                "last_used_at": rfc3339(used),
                "own": client.own,
                "limits": client.limits.public(),
                "models": list(client.models),
                "personas": list(client.personas),
                "helps": client.helps.public(),
            }
            for *who, ends_with, made, used in found
            for client in [as_client(*who)]
        ]

    def row(self, key_id: str) -> dict[str, Any]:
        """Raises ProxyError 404."""
        for row in self.rows():
            if row["id"] == key_id:
                return row
        raise ProxyError(404, "There is no such key. It may have been revoked already.")

    def update(self, key_id: str, **changes: Any) -> dict[str, Any]:
        """Change name, own, limits, models, personas or helps of a key; its row then. Raises ProxyError 404."""
        row = self._db.execute(f"SELECT {COLUMNS} FROM client_keys WHERE id = ?", (key_id,)).fetchone()  # noqa: S608
        if row is not None:
            self._change(
                f"UPDATE client_keys SET ({COLUMNS}) = (?, ?, ?, ?, ?, ?, ?) WHERE id = ?",  # noqa: S608
                (*as_row(replace(as_client(*row), **changes)), key_id),
            )
        return self.row(key_id)

    def revoke(self, key_id: str) -> bool:
        found = self._change("DELETE FROM client_keys WHERE id = ?", (key_id,)).rowcount > 0
        self._note_whether_any()
        return found

    def _note_whether_any(self) -> None:
        try:
            if self.any():
                self._there_are_keys.touch(mode=PRIVATE_FILE)
            elif not self._lost:
                self._there_are_keys.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be changed: %s", self._there_are_keys, why(error))

    def _change(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        """Raises ProxyError 503 when the disk does not take it."""
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise ProxyError(
                503,
                f"The keys cannot be changed just now ({error}), and are as they were. "
                "Make room on the disk, then try again.",
            ) from None

    def find(self, secret: str) -> Client | None:
        """The holder of this key. Looked up by its digest, so that the time it takes tells nothing of any key."""
        if not secret.startswith(PREFIX):
            return None
        try:
            row = self._db.execute(
                f"SELECT {COLUMNS}, last_used_at FROM client_keys WHERE digest = ?",  # noqa: S608
                (digest(secret),),
            ).fetchone()
        except sqlite3.Error as error:
            raise ProxyError(503, f"The client keys cannot be read just now ({error}). Try again.") from None
        if row is None:
            return None
        *who, used = row
        now = self._clock()
        if (
            now - max(used or 0, self._noted.get(who[0], 0)) > 60
        ):  # a minute's precision spares a write for each request
            self._noted[who[0]] = now  # also where it fails: a locked file holds up one request a minute
            self._note_use(who[0], now)
        return as_client(*who)

    def _note_use(self, key_id: str, now: float) -> None:
        try:
            self._db.execute("UPDATE client_keys SET last_used_at = ? WHERE id = ?", (now, key_id))
        except sqlite3.Error as error:
            log.warning("The last use of a client key cannot be noted: %s", error)

    def holder(self, headers: Mapping[str, str]) -> Client | None:
        """Whose key a request brings."""
        return next(filter(None, map(self.find, presented(headers))), None)

    def authenticate(self, headers: Mapping[str, str]) -> Client:
        """Who asks. Raises ProxyError 401 when a key is needed and none of ours is presented."""
        if client := self.holder(headers):
            return client
        if not self.needed:
            return OWNER
        if self._lost:
            raise ProxyError(401, "This proxy has lost its client keys. Its owner can make new ones on the page Keys.")
        raise ProxyError(
            401,
            "This proxy asks for a client key. Put one, made by its owner, into the password field of your front end.",
        )


def as_client(key_id: str, name: str, own: int, limits: str, models: str, personas: str, helps: str) -> Client:
    """The values of COLUMNS as the one who asks with the key."""
    return Client(
        key_id,
        name,
        bool(own),
        Limits.of(orjson.loads(limits)),
        tuple(orjson.loads(models)),
        tuple(orjson.loads(personas)),
        CacheHelps.of(orjson.loads(helps)),
    )


def as_row(client: Client) -> tuple[Any, ...]:
    """The values of COLUMNS."""
    lists = (client.limits.public(), list(client.models), list(client.personas), client.helps.public())
    return client.key_id, client.name, client.own, *(orjson.dumps(value).decode() for value in lists)
