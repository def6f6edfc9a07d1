// What the pages share: talking to the proxy, copy buttons, times in the reader's own clock.

export const words = JSON.parse(document.body.dataset.words);

/** "{name} is here" with the values put in. */
export const fill = (text, values) => text.replace(/\{(\w+)\}/g, (all, key) => values[key] ?? all);

/** Ask the proxy; the answer's JSON, or an Error with a sentence to show. */
export async function ask(method, path, body) {
  const asked = { method, headers: { accept: "application/json" } };
  if (body !== undefined) {
    asked.headers["content-type"] = "application/json";
    asked.body = JSON.stringify(body);
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

/** Show a sentence in a live region; `bad` marks an error. */
export function tell(region, text, bad = false) {
  region.textContent = text;
  region.classList.toggle("bad", bad);
}

for (const time of document.querySelectorAll("time[datetime]")) time.textContent = clock(time.dateTime);

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = words.copied;
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = words.copy_by_hand;
    }
    setTimeout(() => (button.textContent = words.copy), 2000);
  });
}
