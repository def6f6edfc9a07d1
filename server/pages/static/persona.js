// One persona: its form, or the text of its file where that is damaged.

import { ask, busy, byId, confirmed, fill, helpsOf, tell } from "./page.js";

const words = JSON.parse(byId("words").dataset.words);
const form = byId("persona"), fields = form.elements, region = byId("result");
const TEXTS = ["name", "description", "system", "suffix", "suffix_thinking", "model"];
const address = (name) => `/api/personas/${encodeURIComponent(name)}`;
let unsaved = false;

/** The file's text. Raises a SyntaxError for settings that are no JSON. */
function written() {
  if (fields.text) return fields.text.value;
  const persona = {};
  for (const name of TEXTS) if (fields[name].value.trim()) persona[name] = fields[name].value;
  if (fields.settings.value.trim()) persona.settings = JSON.parse(fields.settings.value);
  const helps = Object.entries(helpsOf(fields)).filter(([, value]) => value !== null);
  if (helps.length) persona.helps = Object.fromEntries(helps);
  return JSON.stringify(persona, null, 2) + "\n";
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  let text;
  try {
    text = written();
  } catch {
    tell(region, words.settings_broken, true);
    fields.settings.focus();
    return;
  }
  const name = form.dataset.name || fields.file.value.trim();
  await busy(event.submitter ?? form.querySelector("button"), region, async () => {
    const saved = await ask(form.dataset.name ? "PUT" : "POST", address(name), text);
    unsaved = false;
    if (form.dataset.name && !fields.text) tell(region, fill(words.saved, { name: saved.title }));
    else location.assign(`/personas/${encodeURIComponent(saved.name)}`);
  });
});

byId("delete")?.addEventListener("click", async ({ target }) => {
  if (!(await confirmed(fill(words.delete_ask, { name: form.dataset.name }), target.textContent))) return;
  await busy(target, region, async () => {
    await ask("DELETE", address(form.dataset.name));
    unsaved = false;
    location.assign("/personas");
  });
});

form.addEventListener("input", () => (unsaved = true));
addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
