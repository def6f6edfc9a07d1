// The start page, live: the last turns, and a fresh page when who pays has changed.

import { ask, clock, fill } from "./page.js";

const card = document.getElementById("turns-card");
const words = JSON.parse(card.dataset.words);
const table = card.querySelector("table");
const rows = document.getElementById("turn-rows");
const state = document.getElementById("turns-state");
const noneYet = state.textContent;
const labels = [...table.querySelectorAll("th")].map((th) => th.textContent);
let shown = "", signedIn;

/** As players count: cents below a dollar. */
function money(usd) {
  if (usd === null) return words.unknown;
  return usd < 1 ? `${(usd * 100).toFixed(usd < 0.1 ? 1 : 0)} ¢` : `$${usd.toFixed(2)}`;
}

function result(turn) {
  if (turn.ended === "client_left") return words.result_left;
  if (turn.status !== 200) return fill(words.result_error, { status: turn.status });
  return turn.ended === "cut" || turn.ended === "error" ? words.result_cut : words.result_ok;
}

/** What each column says: one text, or two of which the second stands smaller. */
function cells(turn) {
  const t = turn.tokens;
  const input = t.input_tokens + t.cache_read_tokens + t.cache_write_5m_tokens + t.cache_write_1h_tokens;
  const saved = turn.usd === null ? 0 : turn.usd_without_cache - turn.usd;
  return {
    when: clock(turn.at),
    model: turn.persona ? `${turn.model} · ${turn.persona}` : turn.model,
    tokens: [fill(words.tokens_in, { n: input.toLocaleString() }), fill(words.tokens_out, { n: t.output_tokens.toLocaleString() })],
    cache: words[`cache_${turn.cache.outcome}`] ?? turn.cache.outcome,
    cost: saved > 0.0005 ? [money(turn.usd), fill(words.saved, { usd: money(saved) })] : money(turn.usd),
    result: result(turn),
  };
}

function row(turn) {
  const tr = document.createElement("tr");
  for (const [i, [column, text]] of Object.entries(cells(turn)).entries()) {
    const td = document.createElement("td");
    const [first, second] = [text].flat();
    td.textContent = first;
    if (second) td.append(Object.assign(document.createElement("small"), { textContent: second }));
    td.dataset.label = labels[i];
    td.className = column;
    tr.append(td);
  }
  tr.classList.toggle("bad", turn.status !== 200);
  return tr;
}

async function look() {
  if (!document.hidden) {
    try {
      const turns = (await ask("GET", "/api/requests?limit=10")).requests;
      if (JSON.stringify(turns) !== shown) {
        shown = JSON.stringify(turns);
        rows.replaceChildren(...turns.map(row));
        table.hidden = turns.length === 0;
        state.hidden = turns.length > 0;
        state.textContent = noneYet;
      }
      const now = await ask("GET", "/auth/status");
      const seen = [now.signed_in, now.state, now.kind, now.accounts].join();
      if (signedIn !== undefined && seen !== signedIn) location.reload();
      signedIn = seen;
    } catch (error) {
      shown = "";
      state.hidden = false;
      state.textContent = error.status === 404 ? words.turns_absent : error.message;
    }
  }
  setTimeout(look, 4000);
}

look();
