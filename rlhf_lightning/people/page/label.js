// The page on which people rank answers: what is pressed, clicked and typed goes to `Page`.

import { actionOf } from "./keys.js";
import { Page } from "./page.js";
import { get } from "./voice.js";

const page = new Page();

document.addEventListener("keydown", (event) => {
  const action = actionOf(event, page.cards.length);
  if (action === null) return;
  event.preventDefault();
  page.act(action);
});

document.addEventListener("focusin", (event) => {
  const place = event.target.closest("[data-place]")?.dataset.place;
  if (place !== undefined) page.current = Number(place);
});

for (const name of ["send", "skip", "undo"]) get(name).addEventListener("click", () => page.act([name]));

get("cards").addEventListener("click", (event) => {
  const { move, place } = event.target.closest("[data-move]")?.dataset ?? {};
  if (move === undefined || page.busy) return;
  page.current = Number(place);
  page.act(move === "tie" ? ["tie"] : ["move", move === "better" ? -1 : 1]);
});

for (const id of ["cards", "note"]) get(id).addEventListener("input", () => page.keep());
get("strength").addEventListener("change", (event) => page.choose(Number(event.target.value)));
get("plain").addEventListener("change", (event) => page.plain(event.target.checked));
get("look").addEventListener("click", () => page.look());
get("name").addEventListener("submit", (event) => {
  event.preventDefault();
  page.enter(get("annotator").value.trim());
});

page.start();
