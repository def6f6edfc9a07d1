"""Makes the README's pictures of SillyTavern anew, from the real program: .venv/bin/python -m tests.make_pictures"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.sillytavern import tavern as st
from tests.sillytavern.tavern import Tavern
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


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        proxy(Path(folder) / "proxy", PROXY_PRACTICE="true") as practice,
        st.chromium() as browser,
        st.tavern(Path(folder) / "sillytavern", browser) as player,
    ):
        made = [chat(player, practice.url), panel(player)]
    for path in made:
        size = path.stat().st_size
        print(f"{path.relative_to(TOP)}: {size:,} bytes{' (too large)' if size > LARGEST else ''}")


if __name__ == "__main__":
    main()
