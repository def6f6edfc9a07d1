"""Makes the README's pictures anew, from the real program: .venv/bin/python -m tests.make_pictures [dashboard]

With `dashboard` that picture alone, which needs no SillyTavern.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from server.pages import books as book_pages
from server.receipt import Receipt
from tests.browsing import browsing
from tests.fakes import fake_anthropic, reply_events, stream
from tests.running import running
from tests.sillytavern import tavern as st
from tests.sillytavern.tavern import Tavern
from tests.test_dashboard_browser import Tavern as Dashboard
from tests.test_sillytavern import TOP, proxy

PICTURES = TOP / "docs" / "pictures"
LARGEST = 150_000  # bytes, so that the README opens quickly

STEPS = [
    "#API-status-top",
    "#main_api",
    "#chat_completion_source",
    ".inline-drawer:has(#openai_reverse_proxy) .inline-drawer-icon",
    "#openai_reverse_proxy",
    "#openai_proxy_access_key",
    "#api_button_openai",
]
NUMBER_THEM = """
selectors => selectors.forEach((selector, index) => {
    const field = document.querySelector(selector);
    field.style.outline = '2px solid #ffb84d';
    const place = field.getBoundingClientRect();
    const badge = document.createElement('div');
    badge.textContent = index + 1;
    badge.style.cssText = `position: fixed; z-index: 99999; left: ${place.right - 12}px;
        top: ${Math.max(place.top - 12, 1)}px;
        width: 24px; height: 24px; border-radius: 12px; background: #ffb84d; color: #201400;
        font: bold 15px/24px sans-serif; text-align: center;`;
    document.body.append(badge);
})
"""


def chat(player: Tavern, url: str) -> Path:
    """A chat with the practice upstream."""
    player.page.set_viewport_size({"width": 1280, "height": 760})
    player.talk_to("Tamsin")
    player.connect(url)
    player.close("#sys-settings-button")
    player.send("Gladly! Which lamp is next?")
    return picture(player, "chat.png", until="#send_form")


def panel(player: Tavern) -> Path:
    """The connection panel, filled in for a proxy on this computer, its steps numbered."""
    player.page.set_viewport_size({"width": 1280, "height": 1070})
    player.connect("http://localhost:42069/v1")
    player.page.evaluate(NUMBER_THEM, STEPS)
    return picture(player, "sillytavern-panel.png", until="#openai_api .online_status")


def picture(player: Tavern, name: str, until: str) -> Path:
    """The middle of the page, where SillyTavern stands, down to the end of `until`."""
    player.let_toasts_fade()
    top = player.page.locator("#top-settings-holder").bounding_box()
    end = player.page.locator(until).bounding_box()
    height = end["y"] + end["height"] + 10
    path = PICTURES / name
    player.page.screenshot(path=path, clip={"x": top["x"] - 8, "y": 0, "width": top["width"] + 16, "height": height})
    return path


# An evening: minutes ago, model, persona, tokens read, written and plain, and of the reply.
EVENING = [
    (3, "claude-sonnet-5-5", "edda", 21_870, 610, 240, 402),
    (6, "claude-sonnet-5-5", "edda", 21_340, 530, 251, 388),
    (9, "claude-sonnet-5-5", "edda", 20_790, 550, 236, 441),
    (13, "claude-sonnet-5-5", "edda", 20_310, 480, 244, 356),
    (16, "claude-sonnet-5-5", "edda", 0, 20_310, 239, 415),
    (52, "claude-opus-5-5", "", 34_120, 890, 310, 620),
    (58, "claude-opus-5-5", "", 33_280, 840, 302, 574),
    (65, "claude-opus-5-5", "", 32_500, 780, 297, 602),
]


USUAL_PORT = """
port => document.querySelectorAll('code').forEach(code => {
    code.textContent = code.textContent.replace(`:${port}/`, ':42069/');
})
"""


async def dashboard() -> Path:
    """The start page, while a reply is being written."""
    path = PICTURES / "dashboard.png"
    with tempfile.TemporaryDirectory() as folder:
        shipped = TOP / "presets"
        async with fake_anthropic() as upstream, running(Path(folder), upstream.url, presets=shipped) as tavern:
            await tavern.parts.accounts.add_api_key("sk-ant-api03-not-a-real-key", "My Console key")
            books = tavern.parts.app[book_pages.BOOKS]
            for minutes, model, persona, read, written, plain, output in reversed(EVENING):
                usage = {
                    "input_tokens": plain,
                    "cache_creation_input_tokens": written,
                    "cache_read_input_tokens": read,
                    "output_tokens": output,
                }
                told = {"model": model, "persona": persona, "account": "My Console key", "usage": usage}
                books.add(Receipt(at=time.time() - 60 * minutes, status=200, ended="whole", **told))
            gate = asyncio.Event()
            first, *rest = reply_events(*["word "] * 90, model="claude-sonnet-5-5")
            upstream.will(stream(first, *rest[:80], gate=gate, last=b"".join(rest[80:])))
            body = {"model": "claude-sonnet-5-5", "stream": True}
            writing = asyncio.create_task(tavern.ask("/v1/edda/messages", headers={}, **body))
            shape = {"viewport": {"width": 1280, "height": 700}, "device_scale_factor": 1.5}
            async with browsing(Dashboard(tavern, upstream), **shape) as person:
                page = await person.open("/")
                await page.get_by_text("81 events so far").wait_for()
                await page.evaluate(USUAL_PORT, tavern.port)
                await page.screenshot(path=path)
            gate.set()
            await writing
    smaller(path)
    return path


def smaller(path: Path) -> None:
    """The same picture in 128 colours."""
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    made = [asyncio.run(dashboard())]
    if sys.argv[1:] != ["dashboard"]:
        made += of_sillytavern()
    for path in made:
        size = path.stat().st_size
        print(f"{path.relative_to(TOP)}: {size:,} bytes{' (too large)' if size > LARGEST else ''}")


def of_sillytavern() -> list[Path]:
    with (
        tempfile.TemporaryDirectory() as folder,
        proxy(Path(folder) / "proxy", PROXY_PRACTICE="true") as practice,
        st.chromium() as browser,
        st.tavern(Path(folder) / "sillytavern", browser) as player,
    ):
        return [chat(player, practice.url), panel(player)]


if __name__ == "__main__":
    main()
