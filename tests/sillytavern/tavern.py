"""Drives the real SillyTavern in a real Chromium through the same fields and buttons as a player.

SillyTavern itself is the npm package named in package.json beside this file: run there as a tool, unchanged.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from playwright.sync_api import Browser, Locator, Page, TimeoutError, sync_playwright

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "output"
PROGRAM = HERE / "node_modules" / "sillytavern"
CHARACTER = json.loads((HERE / "tamsin.json").read_text(encoding="utf-8"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_OPTIONS = (
    "--no-sandbox",  # with its sandbox it does not start as root, nor in most containers
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)

# SillyTavern fills in every key left out here. These keep it on this machine, quiet, and as a player's own copy is
# in all that reaches the proxy: one connection per request (its default), no proxy of its own. `claude` is what players
# of Opus 4.6 and Sonnet 4.6 switch on for adaptive thinking; other models are sent the same with it and without.
SETTINGS = """\
listen: false
whitelistMode: true
whitelistDockerHosts: false
browserLaunch: {enabled: false}
enableKeepAlive: false
extensions: {enabled: true, autoUpdate: false, models: {autoDownload: false}}
enableDownloadableTokenizers: false
enableServerPlugins: false
thumbnails: {enabled: false}
claude: {enableAdaptiveThinking: true}
logging: {enableAccessLog: false, minLogLevel: 1}
"""

WAIT = 90_000  # milliseconds until something a player waits for counts as never coming


def missing() -> str:
    """What this machine lacks for driving SillyTavern, as one sentence with the remedy; empty when all is there."""
    if shutil.which("node") is None:
        return "Node.js is missing: install Node.js 20 or newer (Debian: apt-get install nodejs npm)."
    if not (PROGRAM / "server.js").exists():
        return "SillyTavern is missing: run `npm ci` in tests/sillytavern."
    if CHROMIUM is None:
        return "Chromium is missing: install it (Debian: apt-get install chromium)."
    return ""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str | Path], url: str, log: Path, env: Mapping[str, str] | None = None, cwd: Path = HERE
) -> Iterator[str]:
    """A program that answers at `url`, stopped with all its children at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 180
        while not answers(url):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(
                    f"Nothing answers at {url}; the program said:\n{log.read_text(errors='replace')[-4000:]}"
                )
            time.sleep(0.05)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


@contextmanager
def tavern(folder: Path, browser: Browser) -> Iterator[Tavern]:
    """SillyTavern with fresh data in `folder`, open in a fresh browser window, its first visit done."""
    home = folder / "data" / "default-user"
    (home / "characters").mkdir(parents=True)
    (home / "characters" / "Tamsin.png").write_bytes(character_card(browser))
    # Its own first settings but for two: its first API would call a public service before a player can choose another,
    # and with "Reduced motion" nobody waits for panels to slide.
    settings = json.loads((PROGRAM / "default" / "content" / "settings.json").read_text(encoding="utf-8"))
    settings["main_api"] = "openai"
    settings["power_user"]["reduced_motion"] = True
    (home / "settings.json").write_text(json.dumps(settings))
    (folder / "config.yaml").write_text(SETTINGS)
    port = free_port()
    command = ("node", PROGRAM / "server.js", "--configPath", folder / "config.yaml", "--dataRoot", folder / "data")
    with serving((*command, "--port", str(port)), f"http://127.0.0.1:{port}/", folder / "sillytavern.log") as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(WAIT)
        player = Tavern(page)
        player.visit(url, "Robin")
        yield player
        page.context.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


def character_card(browser: Browser) -> bytes:
    """A character as front ends exchange it: a portrait whose PNG carries the character as base64 JSON in `chara`."""
    page = browser.new_page(viewport={"width": 400, "height": 600})
    page.set_content(f"<style>body {{ margin: 0 }}</style>{(HERE / 'tamsin.svg').read_text(encoding='utf-8')}")
    portrait = page.screenshot()
    page.context.close()
    text = b"tEXt" + b"chara\0" + base64.b64encode(json.dumps(CHARACTER).encode())
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return portrait[:-12] + chunk + portrait[-12:]  # the last 12 bytes are IEND


@dataclass(frozen=True)
class Toast:
    """A message that slid in at the top of the page, as the player read it."""

    kind: str  # error, warning, info or success
    title: str
    text: str


# Runs before the page's own scripts: keeps every toast, and tells when a request to an address last began, of those
# that are over.
WATCH = """
performance.setResourceTimingBufferSize(100_000);
window.last = address => performance.getEntriesByType('resource')
    .filter(request => request.name.endsWith(address)).at(-1)?.startTime ?? 0;
window.toasts = [];
new MutationObserver(changes => {
    for (const node of changes.flatMap(change => [...change.addedNodes])) {
        if (!node.classList?.contains('toast')) continue;
        const read = part => node.querySelector(part)?.textContent ?? '';
        const kind = ['error', 'warning', 'info', 'success'].find(kind => node.classList.contains(`toast-${kind}`));
        toasts.push({kind, title: read('.toast-title'), text: read('.toast-message')});
    }
}).observe(document, {childList: true, subtree: true});
"""

# What the page shows, as JavaScript
IDLE = "!document.body.dataset.generating"
ERROR = "toasts.some(toast => toast.kind === 'error')"
ASKED = "last('/generate')"
SAVED = "last('/api/chats/save')"
SENT = "document.querySelectorAll('#chat .mes[is_user=true]').length"
LAST = "document.querySelector('#chat .last_mes')"
LAST_TEXT = f"({LAST}?.querySelector('.mes_text')?.innerText ?? '').trim()"
REPLY = f"({LAST}?.getAttribute('is_user') === 'false' && !['', '...', '…'].includes({LAST_TEXT}))"  # dots: no word yet


class Tavern:
    """One SillyTavern page, and what a player does on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.proxy = ""
        self.allowed: set[str] = set()
        self.asked = 0.0
        page.add_init_script(WATCH)

    # Opening it

    def visit(self, url: str, name: str) -> None:
        """Open the page for the first time and answer its welcome with a name."""
        self.page.goto(url)
        self.page.locator(".popup .onboarding").wait_for()
        self.page.locator(".popup-input").fill(name)
        self.page.locator(".popup-button-ok:visible").click()
        self.page.locator(".welcomePanel").wait_for()
        self.page.locator("#loader").wait_for(state="detached")

    def open(self, drawer: str) -> Locator:
        """Open one of the panels behind the icons at the top."""
        panel = self.page.locator(f"{drawer} > .drawer-content")
        if "closedDrawer" in (panel.get_attribute("class") or ""):
            self.page.locator(f"{drawer} > .drawer-toggle").click()
        panel.wait_for()
        return panel

    def close(self, drawer: str) -> None:
        panel = self.page.locator(f"{drawer} > .drawer-content")
        if "openDrawer" in (panel.get_attribute("class") or ""):
            self.page.locator(f"{drawer} > .drawer-toggle").click()
        panel.wait_for(state="hidden")

    # The plug: where to send the chat

    def connect(self, url: str, password: str = "anything") -> str:
        """Type the proxy's address and password, press Connect, and read the line beside the lamp."""
        panel = self.open("#sys-settings-button")
        panel.locator("#main_api").select_option(label="Chat Completion")
        panel.locator("#chat_completion_source").select_option(label="Claude")
        address = panel.locator("#openai_reverse_proxy")
        if not address.is_visible():
            panel.get_by_text("Reverse Proxy", exact=True).click()
        address.fill(url)
        panel.locator("#openai_proxy_access_key").fill(password)
        panel.locator("#api_button_openai").click()
        lamp = panel.locator("#openai_api .online_status")
        lamp.locator(".online_status_indicator.success").wait_for()
        self.page.locator("#send_but").wait_for()
        self.proxy = url
        return lamp.inner_text().strip()

    def choose_model(self, model: str) -> None:
        self.open("#sys-settings-button").locator("#model_claude_select").select_option(value=model)

    def test_message(self) -> Toast:
        """Press Test Message and read the toast that tells how it went."""
        self.forget_toasts()
        self.open("#sys-settings-button").locator("#test_api_button").click()
        self.allow_proxy()
        self.wait("toasts.some(toast => ['success', 'error'].includes(toast.kind))")
        return self.toasts()[-1]

    def allow_proxy(self) -> None:
        """Say yes to "Connecting To Proxy", which SillyTavern asks once for each address."""
        if self.proxy in self.allowed:
            return
        dialog = self.page.locator(".popup:visible", has_text="Connecting To Proxy")
        dialog.locator(".popup-button-ok").click()
        dialog.wait_for(state="hidden")
        self.allowed.add(self.proxy)

    # The sliders: what to send with it

    def stream(self, wanted: bool) -> None:
        self.open("#ai-config-button").locator("#stream_toggle").set_checked(wanted)

    def reply_length(self, tokens: int) -> None:
        """Set "Max Response Length"."""
        self.open("#ai-config-button").locator("#openai_max_tokens").fill(str(tokens))

    def temperature(self, value: float) -> None:
        self.open("#ai-config-button").locator("#temp_counter_openai").fill(str(value))
        self.page.keyboard.press("Enter")

    def use_system_prompt(self, wanted: bool) -> None:
        self.open("#ai-config-button").locator("#use_sysprompt").set_checked(wanted)

    def reasoning_effort(self, effort: str) -> None:
        self.open("#ai-config-button").locator("#openai_reasoning_effort").select_option(label=effort)

    def start_reply_with(self, text: str) -> None:
        """Set "Assistant Prefill" of the Claude settings."""
        self.open("#ai-config-button").locator("#claude_assistant_prefill").fill(text)

    # The chat

    def talk_to(self, name: str) -> str:
        """Pick a character and read her greeting."""
        panel = self.open("#rightNavHolder")
        panel.locator(".character_select", has_text=name).click()
        self.wait(f"{REPLY} && {LAST}.getAttribute('ch_name') === '{name}'")
        self.close("#rightNavHolder")
        return self.last_message()

    def start_new_chat(self) -> str:
        self.page.evaluate(f"{LAST}.dataset.old = ''")
        self.choose_option("#option_start_new_chat")
        self.page.locator(".popup:visible .popup-button-ok").click()
        self.wait(f"document.querySelectorAll('#chat .mes').length === 1 && {REPLY} && !('old' in {LAST}.dataset)")
        return self.last_message()

    def send(self, text: str) -> str:
        """Send a message, and read the whole reply."""
        self.begin(text)
        return self.read_to_the_end()

    def send_in_vain(self, text: str) -> Toast:
        """Send a message that is answered by an error, and read its toast."""
        self.begin(text)
        self.wait(f"{IDLE} && {ERROR}")
        return self.errors()[0]

    def begin(self, text: str) -> None:
        """Send a message without waiting for the reply."""
        self.ask()
        sent = self.page.evaluate(SENT)
        self.page.locator("#send_textarea").fill(text)
        self.page.locator("#send_but").click()
        self.allow_proxy()
        self.wait(f"{SENT} > {sent}")

    def ask(self) -> None:
        """To be called before asking for a reply, so that it is told from those before it."""
        self.forget_toasts()
        self.asked = self.page.evaluate(ASKED)

    def read_while_streaming(self) -> str:
        """Wait until the first words of the reply stand in the chat while more are still to come."""
        self.wait(f"!({IDLE}) && {REPLY}")
        return self.last_message()

    def read_to_the_end(self) -> str:
        """Wait until the reply stands there whole; nothing must go wrong.

        Until the chat is saved, SillyTavern 1.19.0 ignores its send button although it looks ready.
        """
        self.wait(f"{IDLE} && ({ERROR} || ({REPLY} && {self.asked} < {ASKED} && {ASKED} < {SAVED}))")
        assert not self.errors(), f"SillyTavern shows {self.errors()}"
        return self.last_message()

    def stop(self) -> str:
        """Press the stop button, and read what stays of the reply."""
        saved = self.page.evaluate(SAVED)
        self.page.locator("#mes_stop").click()
        self.wait(f"{IDLE} && {saved} < {SAVED}")
        return self.last_message()

    def swipe(self) -> str:
        """Ask for another version of the last reply, and read it."""
        self.ask()
        self.page.locator("#chat .last_mes .swipe_right").click()
        return self.read_to_the_end()

    def swipes(self) -> str:
        """The counter beside the last reply, such as 2/2, without the invisible blanks in it."""
        return self.page.locator("#chat .last_mes .swipes-counter").inner_text().replace("\u200b", "")

    def regenerate(self) -> str:
        """Have the last reply written anew, and read it."""
        self.ask()
        self.choose_option("#option_regenerate")
        return self.read_to_the_end()

    def carry_on(self) -> str:
        """Choose Continue, and read the longer reply."""
        self.ask()
        self.choose_option("#option_continue")
        return self.read_to_the_end()

    def thoughts(self) -> str:
        """The reasoning shown above the last reply."""
        return self.page.locator("#chat .last_mes .mes_reasoning").text_content() or ""

    def last_message(self) -> str:
        return str(self.page.evaluate(LAST_TEXT))

    def shown(self) -> list[str]:
        """All that stands in the chat below the greeting."""
        return [text.strip() for text in self.page.locator("#chat .mes .mes_text").all_inner_texts()[1:]]

    def choose_option(self, option: str) -> None:
        self.page.locator("#options").wait_for(state="hidden")  # it fades out since the last time
        self.page.locator("#options_button").click()
        self.wait("getComputedStyle(options).opacity === '1'")  # the menu moves into place while it fades in
        self.page.locator(option).click()

    # Toasts, waiting, pictures

    def toasts(self) -> list[Toast]:
        return [Toast(**toast) for toast in self.page.evaluate("toasts")]

    def errors(self) -> list[Toast]:
        return [toast for toast in self.toasts() if toast.kind == "error"]

    def forget_toasts(self) -> None:
        self.page.evaluate("toasts.length = 0; toastr.clear()")

    def let_toasts_fade(self) -> None:
        self.page.evaluate("toastr.clear()")
        self.page.locator(".toast").first.wait_for(state="hidden")

    def wait(self, condition: str) -> None:
        try:
            self.page.wait_for_function(f"() => {condition}")
        except TimeoutError:
            self.give_up(condition)

    def give_up(self, waited_for: str) -> NoReturn:
        OUTPUT.mkdir(exist_ok=True)
        picture = OUTPUT / "sillytavern-stuck.png"
        self.page.screenshot(path=picture)
        shown = f"last message {self.last_message()[:200]!r}, toasts {self.toasts()}, picture {picture}"
        raise AssertionError(f"SillyTavern never came to: {waited_for}. It shows: {shown}")
