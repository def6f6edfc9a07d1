// The doctor looks at everything, and says what to mend.

import { ask, busy, byId, fill, tell } from "./page.js";

const words = JSON.parse(byId("words").dataset.words);

function row({ mark, what }) {
  const li = document.createElement("li");
  li.className = `found-${mark}`;
  const label = Object.assign(document.createElement("strong"), { textContent: words[`mark_${mark}`] });
  li.append(label, " ", what);
  return li;
}

const look = () =>
  busy(byId("again"), byId("result"), async () => {
    const { findings } = await ask("GET", "/api/doctor");
    byId("findings").replaceChildren(...findings.map(row));
    const n = findings.filter(({ mark }) => mark === "bad").length;
    tell(byId("result"), n === 0 ? words.well : n === 1 ? words.one : fill(words.several, { n }), n > 0);
  });

byId("again").addEventListener("click", look);
look();
