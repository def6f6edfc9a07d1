"""Somebody in front of a real Chromium."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP rebound.example 127.0.0.1"]

expect.set_options(timeout=60_000)

NEEDED = [
    pytest.mark.anyio,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


def picture_folder(tmp_path):
    """Where the screenshots go: $TAVERN_PICTURES, or the test's own folder."""
    folder = Path(os.environ.get("TAVERN_PICTURES") or tmp_path / "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Person:
    """Somebody in front of a browser: opens pages, presses keys. What goes wrong in a page is kept in `troubles`."""

    def __init__(self, context, tavern):
        self.context = context
        self.tavern = tavern
        self.troubles = []
        self.asked = set()  # origins
        context.on("page", self.watch)
        context.on("request", lambda request: self.asked.add(re.sub(r"(://[^/]+).*", r"\1", request.url)))

    def watch(self, page):
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        page.on("console", self.heard)
        page.on("dialog", lambda dialog: self.troubles.append(f"dialog: {dialog.message}"))

    def heard(self, message):
        refused_on_purpose = message.text.startswith("Failed to load resource: the server responded with a status of")
        if message.type in ("error", "warning") and not refused_on_purpose:
            self.troubles.append(f"{message.type}: {message.text}")

    async def open(self, path="", page=None):
        """The page at a path of ours, as the owner."""
        page = page or await self.context.new_page()
        if not await self.context.cookies(self.tavern.url):
            await page.goto(self.tavern.link())
            await page.wait_for_url(re.compile(r"/(auth/login)?$"))
        await page.goto(self.tavern.url + path)
        return page


@asynccontextmanager
async def browsing(tavern, **options):
    """A person with a fresh browser; whatever went wrong in a page fails the test at the end."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        context = await browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **options})
        context.set_default_timeout(60_000)
        person = Person(context, tavern)
        try:
            yield person
        finally:
            await browser.close()
    assert person.troubles == []


async def tab_to(page, selector, presses=30):
    """Press Tab until the focus is there."""
    for _ in range(presses):
        await page.keyboard.press("Tab")
        if await page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached with the Tab key")


async def looks_right(page, url, folder, name, *, until=None):
    """Pictures of a page, on a phone, a desk and a wide screen, by day and by night: nothing too wide or too pale."""
    for width in (375, 1600, 1000):
        await page.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            await page.goto(url)
            if until:
                await page.locator(until).first.wait_for()
            await page.screenshot(path=folder / f"{name}-{scheme}-{width}.png", full_page=True)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate(TOO_PALE) == []


# What a screen reader would stumble over: parts without a name, or with one that another has too; headings that jump;
# references that lead nowhere.
HARD_TO_HEAR = """() => {
  const shown = [...document.querySelectorAll("button, a[href], input, select, textarea, summary")]
    .filter(node => node.checkVisibility());
  const text = (id) => document.getElementById(id)?.textContent.trim() ?? "";
  const texts = (ids) => (ids ?? "").split(/\\s+/).map(text).join(" ");
  const name = (node) => node.getAttribute("aria-label") ?? (texts(node.getAttribute("aria-labelledby")).trim()
    || [...node.labels ?? []].map(label => label.textContent.trim()).join(" ") || node.textContent.trim());
  const found = shown.filter(node => !name(node)).map(node => `no name: ${node.outerHTML.slice(0, 120)}`);
  const heard = shown.filter(node => node.tagName !== "A" && node.tagName !== "SUMMARY" && node.type !== "radio")
    .map(node => `${name(node)} ${texts(node.getAttribute("aria-describedby"))} ${node.form?.ariaLabel ?? ""}`);
  found.push(...heard.filter((one, i) => heard.indexOf(one) < i).map(one => `twice: ${one}`));
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map(node => +node.tagName[1]);
  if (levels.filter(level => level === 1).length !== 1 || levels[0] !== 1) found.push(`headings: ${levels}`);
  found.push(...levels.filter((level, i) => level > (levels[i - 1] ?? 0) + 1).map(level => `a jump to h${level}`));
  const ids = [...document.querySelectorAll("[id]")].map(node => node.id);
  found.push(...ids.filter((id, i) => ids.indexOf(id) < i).map(id => `two of the id ${id}`));
  for (const attribute of ["aria-labelledby", "aria-describedby", "for"])
    for (const node of document.querySelectorAll(`[${attribute}]`))
      for (const id of node.getAttribute(attribute).split(/\\s+/))
        if (!ids.includes(id)) found.push(`${attribute} leads nowhere: ${id}`);
  found.push(...[...document.querySelectorAll("th:not([scope]), [role=img]:not([aria-label]), img:not([alt])")]
    .map(node => node.outerHTML.slice(0, 120)));
  return found;
}"""


# Every text's contrast with what is behind it, by WCAG 2.2 (1.4.3): those under 4.5, or under 3 when large.
TOO_PALE = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parts(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const pale = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("[data-words][hidden]")) continue;
    const style = getComputedStyle(node), a = light(parts(style.color)), b = light(behind(node));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) pale.push(`${node.textContent.trim()}: ${contrast.toFixed(2)}`);
  }
  return pale;
}"""


async def begin_sign_in(person, page):
    """Start a subscription sign-in; the code Claude's page shows."""
    await page.get_by_label("I understand").check()
    async with person.context.expect_page() as opened:
        await page.get_by_role("button", name="Sign in with Claude").click()
    theirs = await opened.value
    code = await theirs.locator("#code").inner_text()
    await theirs.close()
    return code
