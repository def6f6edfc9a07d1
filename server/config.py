"""Settings: each key once, with its type, default and meaning."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dotenv.parser import parse_stream

from server.addresses import base_of, is_loopback, url_problem
from server.cache_helps import MOST_PINGS

TOP = Path(__file__).resolve().parent.parent
CONFIG_FILE = TOP / "server" / "config.txt"
ENV_FILE = TOP / ".env"
PREFIX = "PROXY_"
MOST_BODIES = 100  # kept in memory: a body may have 32 MB
MOST_DAYS = 10_000  # dates before 1970 are beyond what every system can reckon with


class ConfigError(Exception):
    """A setting that stops the start: one sentence naming the place, the mistake and the remedy."""


def setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Config:
    """Everything an owner can set. README's table and config.txt are made from this declaration (util/docs.py)."""

    port: int = setting(42069, "Port to listen on.")
    host: str = setting(
        "", "Address to listen on. Blank: this computer only (127.0.0.1 and ::1). 0.0.0.0 opens it to your network."
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "Further names this server answers to, separated by commas, for example my-pc.local."
    )
    allowed_origins: tuple[str, ...] = setting(
        (), "Web pages that may call it from a browser, separated by commas, for example https://risuai.xyz."
    )
    require_client_key: Literal["auto", "true", "false"] = setting(
        "auto", "Ask front ends for a client key. auto: once a key exists, or when listening beyond this computer."
    )
    make_first_key: bool = setting(False, "Make one client key at the first start, as our container image does.")
    data_dir: Path = setting(Path("~/.claude-code-proxy"), "Folder for sign-ins, keys and books.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = setting(
        "INFO", "How much the log says. Chat text and secrets are never in it."
    )
    auto_open_browser: bool = setting(True, "Open the browser at the start when nobody is signed in.")
    practice: bool = setting(False, "Answer from the built-in practice upstream: no account, no network, no AI.")
    api_base_url: str = setting("https://api.anthropic.com", "Where Anthropic's API is.")
    default_model: str = setting("", "Model for requests that name none. Blank: such requests get an error.")
    replace_retired_models: bool = setting(
        False,
        "Ask a retired model's successor instead, at its own price. Otherwise such requests get an error naming it.",
    )
    filter_sampling_params: Literal["auto", "true", "false"] = setting(
        "auto",
        "temperature, top_p, top_k. auto: what the model takes; true: always the classic rule; false: untouched.",
    )
    strip_cache_ttl: Literal["auto", "true", "false"] = setting(
        "auto", "Take ttl out of cache marks. auto: for subscription sign-ins; true: always; false: never."
    )
    required_system_line: str = setting(
        "You are Claude Code, Anthropic's official CLI for Claude.",
        "First system line of requests paid by a subscription sign-in, as their endpoint asks. Blank: none.",
    )
    skip_steps: tuple[str, ...] = setting(
        (), "Rewrite steps to leave out, separated by commas; their names are in the README's table."
    )
    explain_in_chat: Literal["auto", "true", "false"] = setting(
        "auto",
        "A short marked line at a reply's end. auto: at refusals and blank replies; true: also at cut ones; false.",
    )
    account_choice: Literal["sticky", "priority", "round_robin"] = setting(
        "sticky",
        "Which of several accounts pays. sticky: a chat keeps its account, where its cache is; priority: always the "
        "first that is free; round_robin: each in turn.",
    )
    books_days: int = setting(90, "Days for which the books keep each request. Older ones become sums of days.")
    metrics_token: str = setting(
        "", "A password with which a Prometheus may read /metrics, besides the owner. Blank: the owner alone."
    )
    cache_planner: bool = setting(True, "Place the prompt-cache marks so that long chats cost least.")
    cache_late_lore: bool = setting(
        False, "Move changing lore lines behind the stable part of the prompt. Changes their order, not their words."
    )
    cache_steady_window: bool = setting(
        False, "When the context is full, cut older messages in larger steps. The model sees about a tenth less."
    )
    cache_keepalive_pings: int = setting(
        0, "Most paid pings per pause that keep a 5-minute cache alive. Each may be for nothing. 0: none."
    )
    cache_diagnostics: bool = setting(
        False, "Let Anthropic's API say why the cache was missed: names the chat's last reply in each request."
    )
    record_trace: bool = setting(
        False, "Write your chats with their text to data_dir/traces, for util/replay_trace.py. Leave it off otherwise."
    )
    keep_bodies_in_memory: int = setting(
        0,
        "The last requests whose text, as it came and as it was sent, the owner can compare on the page. 0: none. "
        "They are kept in memory alone, never on disk, and are gone at the next start.",
    )
    fallback_to_claude_code: Literal["ask", "true", "false"] = setting(
        "ask", "Use Claude Code's stored login when there is no other sign-in. ask: only after you agreed on the page."
    )
    claude_config_dir: str = setting("", "Claude Code's folder. Blank: $CLAUDE_CONFIG_DIR or ~/.claude.")
    oauth_authorize_url: str = setting("https://claude.ai/oauth/authorize", "Subscription sign-in: the page to open.")
    oauth_token_url: str = setting(
        "https://console.anthropic.com/v1/oauth/token", "Subscription sign-in: where codes become tokens."
    )
    oauth_redirect_uri: str = setting(
        "https://console.anthropic.com/oauth/code/callback",
        "Subscription sign-in: where the code is shown, or http://localhost:42069/auth/callback to receive it here.",
    )
    oauth_client_id: str = setting(
        "9d1c250a-e61b-44d9-88ed-5944d1962f5e", "Subscription sign-in: Claude Code's public client registration."
    )
    oauth_scopes: str = setting(
        "org:create_api_key user:profile user:inference", "Subscription sign-in: what is asked for."
    )

    @property
    def listens_beyond_loopback(self) -> bool:
        return bool(self.host) and not is_loopback(self.host)

    @classmethod
    def load(
        cls,
        config_file: Path = CONFIG_FILE,
        env_file: Path = ENV_FILE,
        environ: Mapping[str, str] = os.environ,
    ) -> Config:
        """Environment (PROXY_PORT) beats .env beats config.txt (port=) beats the default. Raises ConfigError."""
        given = settings_given(config_file, env_file, environ)
        kinds = get_type_hints(cls)
        values = {}
        for key, (text, place) in given.items():
            if key not in kinds:
                raise ConfigError(f"{place}: there is no setting “{key}”.{did_you_mean(key, kinds)}")
            try:
                values[key] = parse(text.strip(), kinds[key])
            except ValueError as error:
                raise ConfigError(f"{place}: {key} {error}, not “{text}”. Correct it or delete the line.") from None
        if "api_base_url" in values:
            values["api_base_url"] = base_of(values["api_base_url"])
        config = cls(**values)
        config.check({key: place for key, (_, place) in given.items()})
        return config

    def check(self, places: Mapping[str, str]) -> None:
        """Raise ConfigError for a value of the right type that cannot work."""

        def refuse(key: str, why: str) -> None:
            raise ConfigError(f"{places.get(key, 'default')}: {key} {why}. Correct it or delete the line.")

        if not 0 < self.port <= 65535:
            refuse("port", "must be between 1 and 65535")
        if not 0 <= self.cache_keepalive_pings <= MOST_PINGS:
            refuse("cache_keepalive_pings", f"must be between 0 and {MOST_PINGS}")
        if 0 < len(self.metrics_token) < 16:
            refuse("metrics_token", "must have at least 16 characters")
        if not 1 <= self.books_days <= MOST_DAYS:
            refuse("books_days", f"must be between 1 and {MOST_DAYS}")
        if not 0 <= self.keep_bodies_in_memory <= MOST_BODIES:
            refuse("keep_bodies_in_memory", f"must be between 0 and {MOST_BODIES}")
        for key in ("data_dir", "claude_config_dir"):
            try:
                Path(getattr(self, key)).expanduser()
            except RuntimeError:
                refuse(key, "begins with the home folder of a user whom this computer does not know")
        for name in self.skip_steps:
            if name not in step_names():
                refuse("skip_steps", f"is a list of steps, and there is no step “{name}”; the README names them")
        for key in ("api_base_url", "oauth_authorize_url", "oauth_token_url", "oauth_redirect_uri"):
            if problem := url_problem(getattr(self, key)):
                refuse(key, problem)
        for origin in self.allowed_origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                refuse("allowed_origins", f"“{origin}” must look like https://name or http://name:port")
        for host in self.allowed_hosts:
            if not all(c.isalnum() or c in "-._:[]" for c in host):
                refuse("allowed_hosts", f"“{host}” must be a bare name or address, without http:// and without a path")


def settings_given(
    config_file: Path = CONFIG_FILE, env_file: Path = ENV_FILE, environ: Mapping[str, str] = os.environ
) -> dict[str, tuple[str, str]]:
    """`{key: (text, place)}` of what is set anywhere, the place that goes first winning. Raises ConfigError."""
    return {
        **read_file(config_file, prefix=""),
        **read_file(env_file, prefix=PREFIX),
        **{
            name.removeprefix(PREFIX).lower(): (text, f"environment variable {name}")
            for name, text in environ.items()
            if name.startswith(PREFIX)
        },
    }


def with_value(text: str, key: str, value: str) -> str:
    """config.txt's text with this value, on the key's own line or on a new last one; its comment and all else stay.

    Raises ValueError where the line would not be read back as meant: a value with a #, a quote at its ends …
    """
    if not value.isprintable():
        raise ValueError("must be on one line")
    lines = text.splitlines(keepends=True)
    pattern = re.compile(rf"(\s*{key}[ \t]*=(?:[ \t]+(?=[^\s#]))?)[^\r\n]*?(\s+#[^\r\n]*)?(\r?\n)?")
    for i, line in enumerate(lines):
        if match := pattern.fullmatch(line):
            head, comment, end = match.groups(default="")
            lines[i] = f"{head}{value}{comment}{end}"
            break
    else:
        lines.append(("" if not text or text.endswith("\n") else "\n") + f"{key}={value}\n")
    written = "".join(lines)
    before, after = read_text(text), read_text(written)
    if after is None or after != {**(before or {}), key: value}:
        raise ValueError("cannot be written into config.txt like this: it has signs that mean something else there")
    return written


def read_text(text: str) -> dict[str, str] | None:
    """`{key: value}` of a file's text; None where a line of it cannot be read."""
    bindings = [one for one in parse_stream(StringIO(text)) if one.error or one.key is not None]
    if any(one.error or one.value is None for one in bindings):
        return None
    return {str(one.key): str(one.value).strip() for one in bindings}


def read_file(path: Path, prefix: str) -> dict[str, tuple[str, str]]:
    """`{key: (value, place)}` of a `key=value  # comment` file, {} if missing. With a prefix, other keys are left."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or "failed").lower()
        raise ConfigError(f"{path} cannot be read: {why}. Save it as plain UTF-8 text or restore it.") from None
    found: dict[str, tuple[str, str]] = {}
    for binding in parse_stream(StringIO(text)):
        line = binding.original.line + len(binding.original.string) - len(binding.original.string.lstrip("\n"))
        place = f"{path.name}, line {line}"
        if binding.error or (binding.key is not None and binding.value is None):
            raise ConfigError(f"{place}: expected key=value. Correct the line, or put # before it to leave it out.")
        if binding.key is None or not binding.key.startswith(prefix):
            continue
        key = binding.key.removeprefix(prefix)
        key = key.lower() if prefix else key
        if key in found:
            raise ConfigError(f"{place}: {key} is set twice, also in {found[key][1]}. Delete one of the lines.")
        found[key] = (binding.value or "", place)
    return found


def parse(text: str, kind: Any) -> Any:
    """`text` as a value of `kind`. Raises ValueError with the words that follow the key in the error."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("must be true or false")
        return text.lower() == "true"
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"must be one of {', '.join(get_args(kind))}")
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is Path:
        if not text or "\0" in text:
            raise ValueError("must be the name of a folder")
        return Path(text)
    return text


def show(value: Any) -> str:
    """A setting's value as config.txt has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def did_you_mean(key: str, known: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, known, n=1)
    return f" Did you mean “{near[0]}”?" if near else " The README lists all settings; delete the line."


def step_names() -> set[str]:
    from server.rewrite import BESIDE, STEPS, step_name

    return {*map(step_name, STEPS), *BESIDE}


def config_text() -> str:
    """config.txt as shipped: every key at its default, its meaning beside it."""
    head = (
        "# Settings of Tavern Proxy: key=value  # comment\n"
        "# Change a value, save, start again. The environment (PROXY_PORT=…) and a .env file at the top go first.\n\n"
    )
    return head + "".join(f"{f.name}={show(f.default)}  # {f.metadata['meaning']}\n" for f in fields(Config))


def readme_table() -> str:
    """The README's table of settings, in Markdown."""
    rows = [f"| `{f.name}` | `{show(f.default)}` | {f.metadata['meaning']} |" for f in fields(Config)]
    rows = [row.replace("| `` |", "| |") for row in rows]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) + "\n"
