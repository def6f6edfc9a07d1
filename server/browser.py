"""The owner's browser, and a proxy that is running already."""

from __future__ import annotations

import http.client
import json
import logging
import sys
import threading
import webbrowser

from server.addresses import from_here, own_url
from server.config import Config

log = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds for a proxy on this computer to answer


def open_in_browser(url: str) -> None:
    """Open a page without waiting: some systems' openers hang. The link stands in the terminal as well."""
    threading.Thread(target=_open, args=(url,), daemon=True, name="browser").start()


def _open(url: str) -> None:
    try:
        opened = webbrowser.open(url)
    except Exception as error:  # webbrowser raises whatever the opener does
        log.debug("The browser did not open: %s", type(error).__name__)
        opened = False
    if not opened:
        log.info("No browser opened by itself: open the link above by hand.")


def ask_running(host: str, port: int, method: str, path: str, admin_token: str = "") -> dict[str, object] | None:
    """What a proxy that listens at `host` answers, as JSON; None when none of ours answers."""
    connection = http.client.HTTPConnection(from_here(host), port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json"}
    if admin_token:
        headers["Authorization"] = f"Bearer {admin_token}"
    try:
        connection.request(method, path, body="{}" if method == "POST" else None, headers=headers)
        answer = json.loads(connection.getresponse().read(100_000))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else None


def other_proxy(host: str, port: int) -> dict[str, object] | None:
    """What another Tavern Proxy at this port says of its health; None when there is none."""
    answer = ask_running(host, port, "GET", "/health")
    return answer if answer and answer.get("status") == "ok" and "version" in answer else None


def open_running(config: Config) -> int:
    """`open`: the dashboard of the running proxy, signed in. The exit status."""
    token_file = config.data_dir.expanduser() / "admin_token"
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except OSError:
        token = ""
    answer = ask_running(config.host, config.port, "POST", "/api/login-link", token) if token else None
    path = answer.get("path") if answer else None
    if not isinstance(path, str):
        print(
            f"No proxy of yours is running at port {config.port}. Start it first, in another window.", file=sys.stderr
        )
        return 1
    url = f"{own_url(config.host, config.port)}{path}"
    print(f"Opening your page. If no browser opens, open this link by hand (it works once):\n\n  {url}\n", flush=True)
    open_in_browser(url)
    for thread in threading.enumerate():
        if thread.name == "browser":
            thread.join(timeout=5)
    return 0
