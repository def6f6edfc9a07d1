// The chats: giving one a name.

import { ask, busy, byId, confirmed, renew } from "./page.js";

const words = JSON.parse(byId("words").dataset.words);

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button[data-do=name]");
  if (!button) return;
  const { id, dataset } = button.closest(".chat");
  const name = await confirmed(words.name_ask, words.save, dataset.name);
  if (name === null) return;
  await busy(button, byId("result"), async () => {
    await ask("PATCH", `/api/chats/${encodeURIComponent(id)}`, { name });
    await renew("list");
  });
});
