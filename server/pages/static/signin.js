// The sign-in page: each way to sign in, and the buttons of the accounts there are.

import { ask, fill, tell } from "./page.js";

const words = JSON.parse(document.getElementById("words").dataset.words);
const byId = (id) => document.getElementById(id);
const ATTEMPT = "tavern-attempt", ATTEMPT_MS = 600_000;

/** Do something that takes a moment: its button rests, its region tells how it went. */
async function busy(button, region, work) {
  button.disabled = true;
  tell(region, words.waiting);
  try {
    await work();
  } catch (error) {
    tell(region, error.message, true);
  } finally {
    button.disabled = false;
  }
}

/** A question with two buttons; true for yes. */
function confirmed(question, yes) {
  const dialog = byId("ask");
  byId("ask-text").textContent = question;
  byId("ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  byId("ask-no").focus();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

function joined({ account, outcome }) {
  sessionStorage.removeItem(ATTEMPT);
  location.assign(`/auth/login?joined=${encodeURIComponent(account.id)}&outcome=${encodeURIComponent(outcome)}`);
}

// The accounts there are.

for (const card of document.querySelectorAll(".account")) {
  const { id, name, source } = card.dataset;
  const region = card.querySelector(".result");
  const acts = {
    wake: () => ask("POST", `/api/accounts/${id}/wake`, {}),
    switch_on: () => ask("PATCH", `/api/accounts/${id}`, { enabled: true }),
    refresh: () => ask("POST", "/auth/refresh", { id }),
    remove: () => ask("DELETE", `/api/accounts/${id}`),
  };
  for (const button of card.querySelectorAll("button[data-do]")) {
    button.addEventListener("click", async () => {
      const act = button.dataset.do;
      const question = source === "claude_code" ? words.remove_claude_code_ask : words.remove_ask;
      if (act === "remove" && !(await confirmed(fill(question, { name }), button.textContent))) return;
      await busy(button, region, async () => {
        await acts[act]();
        location.assign("/auth/login");
      });
    });
  }
}

byId("sign-out")?.addEventListener("click", async (event) => {
  if (!(await confirmed(words.sign_out_ask, event.target.textContent))) return;
  await busy(event.target, byId("accounts-result"), async () => {
    await ask("POST", "/auth/logout", {});
    location.assign("/auth/login");
  });
});

// An API key.

byId("api-key").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, region = byId("key-result");
  if (!form.api_key.value.trim()) {
    tell(region, words.key_missing, true);
    form.api_key.focus();
    return;
  }
  await busy(event.submitter ?? form.querySelector("button"), region, async () => {
    joined(await ask("POST", "/auth/api-key", { api_key: form.api_key.value, name: form.elements.name.value }));
  });
});

// A profile of the ant tool.

for (const button of document.querySelectorAll("button[data-profile]")) {
  button.addEventListener("click", () =>
    busy(button, byId("ant").querySelector(".result"), async () => {
      joined(await ask("POST", "/auth/ant", { profile: button.dataset.profile }));
    }),
  );
}

// A subscription.

const box = byId("subscription"), region = byId("sub-result"), codeForm = byId("code-form");

function understood() {
  if (byId("understood").checked) return true;
  tell(region, words.tick_first, true);
  byId("understood").focus();
  return false;
}

/** The second step: an attempt is under way, in another tab or before this page was loaded anew. */
function showAttempt({ authorize_url: address }) {
  byId("authorize").href = address;
  codeForm.hidden = false;
  byId("start").classList.add("quiet");
  tell(region, "");
}

byId("start").addEventListener("click", async (event) => {
  if (!understood()) return;
  const known = [...document.querySelectorAll('.account[data-kind="subscription"][data-source="own"]')];
  const name = known.map((card) => card.dataset.name).join(", ");
  if (known.length && !(await confirmed(fill(words.sub_again_ask, { name }), words.sub_again_go))) return;
  await busy(event.target, region, async () => {
    const attempt = await ask("POST", "/auth/start", { understood: true });
    sessionStorage.setItem(ATTEMPT, JSON.stringify({ ...attempt, until: Date.now() + ATTEMPT_MS }));
    showAttempt(attempt);
    byId("code").value = "";
    byId("code").focus();
    window.open(attempt.authorize_url, "_blank", "noopener,noreferrer");
    if (box.dataset.landsHere === "yes") waitForCallback();
  });
});

codeForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const pasted = byId("code").value.trim();
  const attempt = JSON.parse(sessionStorage.getItem(ATTEMPT) ?? "{}");
  if (!pasted) {
    tell(region, words.code_missing, true);
    byId("code").focus();
    return;
  }
  // A bare code belongs to the attempt this page began; anyone else's fails at the verifier.
  const code = /[#?]/.test(pasted) || !attempt.state ? pasted : `${pasted}#${attempt.state}`;
  await busy(event.submitter ?? codeForm.querySelector("button"), region, async () => {
    joined(await ask("POST", "/auth/submit", { code }));
  });
});

byId("start-over").addEventListener("click", () => {
  sessionStorage.removeItem(ATTEMPT);
  codeForm.hidden = true;
  byId("start").classList.remove("quiet");
  byId("code").value = "";
  tell(region, "");
  byId("start").focus();
});

byId("claude-code")?.addEventListener("click", async (event) => {
  if (!understood()) return;
  await busy(event.target, region, async () => {
    joined(await ask("POST", "/auth/claude-code", { understood: true }));
  });
});

/** The sign-in ends in the other tab: move on when the proxy knows of it. */
async function waitForCallback() {
  const state = async () => JSON.stringify(await ask("GET", "/auth/status"));
  const before = await state();
  const look = async () => {
    if (codeForm.hidden) return;
    try {
      if (!byId("code").value && (await state()) !== before) {
        sessionStorage.removeItem(ATTEMPT);
        location.assign("/auth/login");
        return;
      }
    } catch {
      // the proxy is being restarted: the attempt outlives that, so go on looking
    }
    setTimeout(look, 2000);
  };
  setTimeout(look, 2000);
}

const attempt = JSON.parse(sessionStorage.getItem(ATTEMPT) ?? "null");
if (attempt && attempt.until > Date.now()) {
  byId("understood").checked = true;
  showAttempt(attempt);
  if (box.dataset.landsHere === "yes") waitForCallback();
}
byId("joined")?.focus();
