// A key holder's page: the key goes in the body of a request and is kept nowhere.

import { busy, byId, dress, words as shared } from "./page.js";

byId("key-form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  await busy(event.submitter ?? form.querySelector("button"), byId("result"), async () => {
    const headers = { "content-type": "application/json" };
    const body = JSON.stringify({ key: form.elements.key.value });
    let response, text;
    try {
      response = await fetch("/me", { method: "POST", headers, body });
      text = await response.text();
    } catch {
      throw new Error(shared.no_answer);
    }
    if (!response.ok) throw new Error(JSON.parse(text).error.message);
    form.reset();
    const mine = document.adoptNode(new DOMParser().parseFromString(text, "text/html").getElementById("me"));
    byId("me").replaceWith(mine);
    dress(mine);
    mine.focus();
  });
});
