// Pages that show what is going on: told of changes, they fetch their parts anew.

import { byId, renew } from "./page.js";

const parts = document.querySelector("main").dataset.live.split(" ");
const PAUSE_MS = 400; // several changes at once are one
let source, waiting;

async function show() {
  waiting = undefined;
  if (parts.some((id) => byId(id)?.querySelector("input[type=number]:focus"))) return soon(); // somebody is typing
  try {
    await renew(...parts);
    byId("offline").hidden = true;
  } catch {
    byId("offline").hidden = false;
  }
}

const soon = () => (waiting ??= setTimeout(show, PAUSE_MS));

/** A page in the background holds no connection: a browser has few of them for one address. */
function listen() {
  source?.close();
  source = undefined;
  if (document.hidden) return;
  source = new EventSource("/api/live");
  source.addEventListener("open", soon);
  source.addEventListener("changed", soon);
  source.addEventListener("progress", ({ data }) => {
    for (const [id, text] of Object.entries(JSON.parse(data))) byId(`way-${id}`)?.replaceChildren(text);
  });
  source.addEventListener("error", () => {
    byId("offline").hidden = false;
    if (source?.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

document.addEventListener("visibilitychange", listen);
addEventListener("pagehide", () => source?.close());
listen();
