// The prompt and the answers of one item as nodes of the page.

import { element, markdown } from "./markdown.js";
import { LETTERS } from "./ranking.js";

const ROLES = { user: "Person", assistant: "Assistant", system: "System", tool: "Tool" };

export const letterOf = (place) => (LETTERS[place] ?? String(place + 1)).toUpperCase();
export const nameOf = (place) => `Answer ${letterOf(place)}`;

// A text, or the turns of a conversation.
export function content(value, plain) {
  if (!Array.isArray(value)) return written(value, plain);
  const turns = value.map((turn) => {
    const role = String(turn?.role ?? "");
    const who = element("p", { class: "role" }, ROLES[role] ?? role);
    return element("div", { class: role === "user" ? "turn person" : "turn" }, who, said(turn, plain));
  });
  const node = document.createDocumentFragment();
  node.append(...turns);
  return node;
}

function said(turn, plain) {
  const rest = { ...turn };
  delete rest.role;
  delete rest.content;
  const node = document.createDocumentFragment();
  if (turn?.content) node.append(written(turn.content, plain));
  // What a message holds besides its text, such as calls of tools.
  if (Object.keys(rest).length > 0) node.append(written(rest, true));
  return node;
}

function written(value, plain) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return plain || typeof value !== "string" ? element("div", { class: "raw" }, text) : markdown(text);
}

export class Card {
  constructor(place, answer, session, plain) {
    this.place = place;
    this.answer = answer;
    const title = element("h3", { id: `answer-${place}`, class: "unseen" }, nameOf(place));
    this.badge = element("span", { class: "badge", id: `rank-${place}` });
    this.body = element("div", { class: "text", dir: "auto" });
    const header = element("div", { class: "head" }, title, this.#handle(), this.badge, this.#moves());
    const labels = `answer-${place} rank-${place}`;
    const attributes = { class: "card", tabindex: "-1", "aria-labelledby": labels, "data-place": place };
    this.node = element("article", attributes, header, this.body);
    if (session.rating) this.node.append(this.#rating(session.rating));
    if (session.flags.length > 0) this.node.append(this.#flags(session.flags));
    this.write(plain);
  }

  write(plain) {
    this.body.replaceChildren(content(this.answer, plain));
  }

  #handle() {
    const label = `${nameOf(this.place)}: rank it next`;
    const attributes = { type: "button", class: "chip", "data-place": this.place, "aria-label": label };
    return element("button", attributes, letterOf(this.place));
  }

  #moves() {
    const move = (name, sign, says) => {
      const label = `${nameOf(this.place)}: ${says}`;
      const where = { "data-move": name, "data-place": this.place };
      return element("button", { type: "button", ...where, "aria-label": label, title: says }, sign);
    };
    return element(
      "div",
      { class: "moves" },
      move("better", "←", "better"),
      move("tie", "=", "same level as the one above"),
      move("worse", "→", "worse"),
    );
  }

  #rating({ low, high, label }) {
    const node = element("fieldset", { class: "rating" }, element("legend", {}, label));
    for (let value = low; value <= high; value += 1) {
      const says = `${nameOf(this.place)}, ${label}: ${value} of ${low} to ${high}`;
      const input = element("input", { type: "radio", name: `rating-${this.place}`, value, "aria-label": says });
      node.append(element("label", {}, input, String(value)));
    }
    return node;
  }

  #flags(flags) {
    const node = element("fieldset", { class: "flags" }, element("legend", {}, "What is wrong with it?"));
    for (const flag of flags) {
      const says = `${nameOf(this.place)}: ${flag}`;
      const input = element("input", { type: "checkbox", value: flag, "aria-label": says });
      node.append(element("label", {}, input, ` ${flag}`));
    }
    return node;
  }

  set rank(text) {
    this.badge.textContent = text;
    this.node.classList.toggle("ranked", text !== "no rank");
  }

  get rating() {
    const chosen = this.node.querySelector(".rating input:checked");
    return chosen ? Number(chosen.value) : null;
  }

  set rating(value) {
    for (const input of this.node.querySelectorAll(".rating input")) input.checked = Number(input.value) === value;
  }

  get flags() {
    return [...this.node.querySelectorAll(".flags input:checked")].map((input) => input.value);
  }

  set flags(flags) {
    for (const input of this.node.querySelectorAll(".flags input")) input.checked = flags.includes(input.value);
  }
}
