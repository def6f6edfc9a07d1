// The client keys: making one, which is shown this once, renaming and taking back.

import { ask, busy, byId, confirmed, fill, helpsOf, renew, tell } from "./page.js";

const words = JSON.parse(byId("words").dataset.words);
const form = byId("make"), made = byId("made"), region = byId("result");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = form.elements, name = fields.name.value.trim();
  if (!name) {
    tell(byId("make-result"), words.name_missing, true);
    byId("name").focus();
    return;
  }
  await busy(event.submitter ?? form.querySelector("button"), byId("make-result"), async () => {
    show(await ask("POST", "/api/keys", { name, own: fields.own.value === "yes", ...limitsOf(form), helps: helpsOf(fields) }));
    form.reset();
    await renew("list");
  });
});

/** What a form says of limits, models and personas; a blank field is no limit. */
function limitsOf({ elements }) {
  const number = (name) => (elements[name].value.trim() === "" ? null : elements[name].valueAsNumber);
  const names = (name) => elements[name].value.split(",").map((one) => one.trim()).filter(Boolean);
  const limits = ["usd_per_day", "usd_per_month", "tokens_per_day", "requests_per_minute"];
  return {
    limits: Object.fromEntries(limits.map((name) => [name, number(name)])),
    models: names("models"),
    personas: names("personas"),
  };
}

document.addEventListener("submit", async (event) => {
  const form = event.target.closest(".key form");
  if (!form) return;
  event.preventDefault();
  const { id } = form.closest(".key"), room = form.closest("details").id;
  await busy(form.querySelector("button"), region, async () => {
    await ask("PATCH", `/api/keys/${id}`, form.matches(".limits") ? limitsOf(form) : { helps: helpsOf(form.elements) });
    await renew("list");
    byId(room).querySelector("summary").focus();
    tell(region, words.saved);
  });
});

/** The key itself is on the page from now on, until it was copied or the page is left. */
function show({ name, key }) {
  made.hidden = false;
  byId("made-title").textContent = fill(form.dataset.made, { name });
  byId("made-key").textContent = key;
  byId("made-copy").dataset.copy = key;
  byId("made-copy").focus();
  made.scrollIntoView({ block: "nearest" });
}

byId("made-done").addEventListener("click", () => {
  made.hidden = true;
  byId("made-key").textContent = byId("made-title").textContent = byId("made-copy").dataset.copy = "";
  byId("name").focus();
});

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button[data-do]");
  if (!button) return;
  const { id, dataset: { name } } = button.closest(".key");
  const renames = button.dataset.do === "rename";
  const question = fill(renames ? words.rename_ask : words.revoke_ask, { name });
  const said = await confirmed(question, button.textContent, renames ? name : undefined);
  if (!said) return;
  await busy(button, region, async () => {
    await (renames ? ask("PATCH", `/api/keys/${id}`, { name: said }) : ask("DELETE", `/api/keys/${id}`));
    await renew("list");
  });
});
