// What the pages share: talking to the proxy, copy buttons, times in the reader's own clock.

export const words = JSON.parse(document.body.dataset.words);
export const byId = (id) => document.getElementById(id);

/** "{name} is here" with the values put in. */
export const fill = (text, values) => text.replace(/\{(\w+)\}/g, (all, key) => values[key] ?? all);

/** Ask the proxy, with a value or a text that is JSON; the answer's JSON, or an Error with a sentence to show. */
export async function ask(method, path, body) {
  const asked = { method, headers: { accept: "application/json" } };
  if (body !== undefined) {
    asked.headers["content-type"] = "application/json";
    asked.body = typeof body === "string" ? body : JSON.stringify(body);
  }
  let response, data;
  try {
    response = await fetch(path, asked);
  } catch {
    throw new Error(words.no_answer);
  }
  try {
    data = response.status === 204 ? {} : await response.json();
  } catch {
    throw new Error(words.odd_answer);
  }
  if (!response.ok) throw Object.assign(new Error(data.error?.message ?? words.odd_answer), { status: response.status });
  return data;
}

/** A time as the reader's clock shows it; today's date and this year are left out. */
export function clock(at) {
  const date = new Date(at), now = new Date();
  const shown = { hour: "2-digit", minute: "2-digit" };
  if (date.toDateString() !== now.toDateString()) Object.assign(shown, { day: "numeric", month: "short" });
  if (date.getFullYear() !== now.getFullYear()) shown.year = "numeric";
  return date.toLocaleString([], shown);
}

/** The cache helps as a form's fields choose them; null where they leave it to others. */
export function helpsOf(elements) {
  const chosen = (name) => ({ "": null, true: true, false: false })[elements[name].value];
  const pings = elements.cache_keepalive_pings;
  return {
    cache_late_lore: chosen("cache_late_lore"),
    cache_steady_window: chosen("cache_steady_window"),
    cache_keepalive_pings: pings.value.trim() === "" ? null : pings.valueAsNumber,
  };
}

/** Show a sentence in a live region; `bad` marks an error. */
export function tell(region, text, bad = false) {
  region.textContent = text;
  region.classList.toggle("bad", bad);
}

/** Do something that takes a moment: its button rests, its region tells how it went. */
export async function busy(button, region, work) {
  const focused = document.activeElement === button;
  button.disabled = true; // which takes the focus away
  tell(region, words.waiting);
  try {
    await work();
    if (region.textContent === words.waiting) tell(region, "");
  } catch (error) {
    tell(region, error.message, true);
  } finally {
    button.disabled = false;
    const nobody = document.activeElement === document.body || document.activeElement === button;
    if (focused && nobody) (button.isConnected ? button : byId(button.id))?.focus();
  }
}

/** A question with two buttons, and with a field if there is a `text` to change: true or the new text for yes, else null. */
export function confirmed(question, yes, text) {
  const dialog = byId("ask"), field = byId("ask-field");
  byId("ask-text").textContent = question;
  byId("ask-yes").textContent = yes;
  field.hidden = text === undefined;
  field.value = text ?? "";
  dialog.returnValue = "no";
  dialog.showModal();
  if (text === undefined) byId("ask-no").focus();
  else field.select();
  return new Promise((done) =>
    dialog.addEventListener(
      "close",
      () => done(dialog.returnValue !== "yes" ? null : text === undefined || field.value.trim()),
      { once: true },
    ),
  );
}

/** Fetch this page anew and put the elements with these ids in the place of the old ones, where they have changed. */
export async function renew(...ids) {
  let fresh;
  try {
    const response = await fetch(location.href, { headers: { accept: "text/html" } });
    fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    throw new Error(words.no_answer);
  }
  const focused = document.activeElement?.id;
  for (const id of ids) {
    const old = byId(id), now = fresh.getElementById(id);
    if (!old || !now) {
      location.reload();
      return;
    }
    const text = now.outerHTML;
    if (shown.get(id) === text) continue;
    shown.set(id, text);
    old.replaceWith(document.adoptNode(now));
    dress(now);
  }
  if (focused && document.activeElement?.id !== focused) byId(focused)?.focus();
}
const shown = new Map();

/** Times in the reader's own clock. */
export function dress(part) {
  for (const time of part.querySelectorAll("time[datetime]")) time.textContent = clock(time.dateTime);
}
dress(document);

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = words.copied;
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = words.copy_by_hand;
  }
  setTimeout(() => (button.textContent = words.copy), 2000);
});

// “More” closes as menus do.
const more = document.querySelector("details.more");
const closeMore = (event) => {
  if (more?.open && !more.contains(event.target)) more.open = false;
};
document.addEventListener("click", closeMore);
document.addEventListener("focusin", closeMore);
more?.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  more.open = false;
  more.querySelector("summary").focus();
});
