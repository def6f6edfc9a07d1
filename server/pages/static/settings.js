// The settings: a button to save comes up where a value was changed.

import { ask, busy, byId, renew, tell } from "./page.js";

const words = JSON.parse(byId("words").dataset.words);
const saver = (form) => form.querySelector("button[type=submit]");
const initial = (field) => field.defaultValue ?? [...field.options].find((option) => option.defaultSelected)?.value;

document.addEventListener("input", ({ target }) => {
  if (target.name === "value") saver(target.form).hidden = target.value === initial(target);
});

async function save(form, value, button) {
  const { key } = form.dataset;
  await busy(button, form.querySelector(".result"), async () => {
    const { restart_needed: waiting } = await ask("PATCH", "/api/settings", { [key]: value });
    await renew("list");
    byId("waiting").hidden = !waiting;
    const field = byId(key);
    field.focus();
    tell(field.form.querySelector(".result"), words.saved);
  });
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  save(form, form.elements.value.value, saver(form));
});

document.addEventListener("click", ({ target }) => {
  const button = target.closest("button[data-do=default]");
  if (button) save(button.form, button.form.dataset.default, button);
});
