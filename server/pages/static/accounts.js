// The accounts: their switches and buttons, and the time until one is free again.

import { ask, busy, byId, confirmed, fill, renew, tell } from "./page.js";

const words = JSON.parse(byId("words").dataset.words);
const region = byId("result");

/** Show the accounts as they are now; the whole page when there are none left, or the first one came. */
async function showAgain() {
  await renew("list");
  countDown();
}

async function act(button, card, what) {
  const { id } = card, { name, source } = card.dataset;
  if (what === "remove") {
    const question = source === "claude_code" ? words.remove_claude_code_ask : words.remove_ask;
    if (!(await confirmed(fill(question, { name }), button.textContent))) return;
  }
  const renamed = what === "rename" ? await confirmed(fill(words.rename_ask, { name }), button.textContent, name) : "";
  if (what === "rename" && !renamed) return;
  const acts = {
    wake: () => ask("POST", `/api/accounts/${id}/wake`, {}),
    refresh: () => ask("POST", "/auth/refresh", { id }),
    rename: () => ask("PATCH", `/api/accounts/${id}`, { name: renamed }),
    remove: () => ask("DELETE", `/api/accounts/${id}`),
  };
  await busy(button, region, async () => {
    try {
      await acts[what]();
    } finally {
      await showAgain();
    }
    tell(region, words.saved);
  });
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest("button[data-do]");
  if (button) act(button, button.closest(".account"), button.dataset.do);
});

document.addEventListener("change", async ({ target }) => {
  const what = target.dataset.set;
  if (!what) return;
  const value = target.type === "checkbox" ? target.checked : target.valueAsNumber;
  await busy(target, region, async () => {
    try {
      await ask("PATCH", `/api/accounts/${target.closest(".account").id}`, { [what]: value });
    } finally {
      await showAgain();
    }
    tell(region, words.saved);
  });
});

byId("sign-out")?.addEventListener("click", async ({ target }) => {
  if (!(await confirmed(words.sign_out_ask, target.textContent))) return;
  await busy(target, region, async () => {
    await ask("POST", "/auth/logout", {});
    location.assign("/auth/login");
  });
});

byId("other").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, fields = form.elements;
  await busy(event.submitter ?? form.querySelector("button"), byId("other-result"), async () => {
    const given = { kind: "api_key", name: fields.name.value, api_key: fields.api_key.value, base_url: fields.base_url.value };
    const account = await ask("POST", "/api/accounts", given);
    form.reset();
    await showAgain();
    tell(byId("other-result"), account.note ?? fill(words.added, { name: account.name }));
  });
});

/** Show how long each rest still lasts; true when one is over. */
function countDown() {
  let over = false;
  for (const part of document.querySelectorAll("[data-until]")) {
    const s = Math.max(Math.ceil((new Date(part.dataset.until) - Date.now()) / 1000), 0), m = Math.ceil(s / 60);
    const [text, values] =
      s < 120 ? [words.left_seconds, { n: s }]
      : m < 120 ? [words.left_minutes, { n: m }]
      : m < 2880 ? [words.left_hours, { h: Math.floor(m / 60), n: m % 60 }]
      : [words.left_days, { n: Math.floor(m / 1440) }];
    part.textContent = `(${fill(text, values)})`;
    over ||= s === 0;
  }
  return over;
}
countDown();
setInterval(() => {
  if (countDown() && !document.hidden) showAgain().catch((error) => tell(region, error.message, true));
}, 1000);
byId("joined")?.focus();
