// The sign-in page: each way to sign in.

import { ask, busy, byId, confirmed, fill, tell } from "./page.js";

const words = JSON.parse(document.getElementById("words").dataset.words);
const ATTEMPT = "tavern-attempt", ATTEMPT_MS = 600_000;

function joined({ account, outcome }) {
  sessionStorage.removeItem(ATTEMPT);
  location.assign(`/accounts?joined=${encodeURIComponent(account.id)}&outcome=${encodeURIComponent(outcome)}`);
}

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
  const name = box.dataset.signedIn;
  if (name && !(await confirmed(fill(words.sub_again_ask, { name }), words.sub_again_go))) return;
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
        location.assign("/accounts");
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
