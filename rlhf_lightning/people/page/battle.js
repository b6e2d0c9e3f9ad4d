// Two answers as nodes of the page, while they are written and afterwards.

import { content } from "./cards.js";
import { element } from "./markdown.js";
import { get } from "./voice.js";

const LETTERS = ["A", "B"];

export class Answers {
  constructor() {
    this.plain = false;
    this.clear();
  }

  clear() {
    this.sides = [];
    for (const id of ["asked", "answers"]) get(id).hidden = true;
  }

  begin(prompt) {
    this.prompt = prompt;
    this.sides = LETTERS.map((letter, place) => new Side(letter, place));
    get("cards").replaceChildren(...this.sides.map((side) => side.node));
    for (const id of ["asked", "answers"]) get(id).hidden = false;
    this.write();
  }

  // The whole of both, as it is in the record.
  show(prompt, answers) {
    this.begin(prompt);
    answers.forEach((answer, place) => this.sides[place].end(answer, true));
    this.write();
  }

  // One line of the server.
  take({ place, text, all, finished }) {
    const side = this.sides[place];
    if (all === undefined) side.text += text;
    else side.end(all, finished);
    this.due ??= requestAnimationFrame(() => this.write());
  }

  write() {
    this.due = undefined;
    get("prompt").replaceChildren(content(this.prompt ?? "…", this.plain));
    for (const side of this.sides) side.write(this.plain);
  }

  tell(authors) {
    authors.forEach((name, place) => this.sides[place].tell(name));
  }
}

class Side {
  constructor(letter, place) {
    this.text = "";
    this.note = "is being written …";
    this.badge = element("span", { class: "badge" });
    this.body = element("div", { class: "text", dir: "auto" });
    const title = element("h3", { id: `answer-${place}`, class: "unseen" }, `Answer ${letter}`);
    const sign = element("span", { class: "letter", "aria-hidden": "true" }, letter);
    const head = element("div", { class: "head" }, title, sign, this.badge);
    const attributes = { class: "card", "aria-labelledby": `answer-${place}`, "data-place": place };
    this.node = element("article", attributes, head, this.body);
  }

  end(text, finished) {
    this.text = text;
    this.note = text.trim() === "" ? "has no words" : finished ? "" : "was cut at the longest length";
  }

  write(plain) {
    this.badge.textContent = this.note;
    this.body.replaceChildren(content(this.text, plain));
  }

  tell(name) {
    this.note = "";
    this.badge.replaceChildren(element("span", { class: "author" }, name));
  }
}
