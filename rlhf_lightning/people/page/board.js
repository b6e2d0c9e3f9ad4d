// The board that shows the ranking, and dragging onto it by mouse, pen or touch.

import { letterOf, nameOf } from "./cards.js";
import { element } from "./markdown.js";

const FAR = 8; // pixels that a pointer moves before a press is a drag
const EDGE = 0.3; // share of a level at each side that means before or after it; the middle means as good as it

export class Board {
  // `pressed(place)`: a chip was pressed. `dropped(place, target)`: {before: level}, {with: place} or {out: true}.
  constructor(pressed, dropped) {
    this.levels = document.getElementById("levels");
    this.tray = document.getElementById("tray");
    this.section = document.getElementById("board");
    this.pressed = pressed;
    this.dropped = dropped;
    this.drag = null;
    document.addEventListener("pointerdown", (event) => this.#down(event));
    document.addEventListener("pointermove", (event) => this.#move(event));
    document.addEventListener("pointerup", (event) => this.#up(event));
    document.addEventListener("pointercancel", () => this.#end());
    document.addEventListener("click", (event) => this.#click(event), true);
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.#end(), true);
  }

  show(ranking) {
    const focused = document.activeElement?.closest("#board .chip")?.dataset.place;
    const { ranks } = ranking;
    const chip = (place) => {
      const says = ranks[place] ? `, rank ${ranks[place]}: take it out` : ": rank it next";
      const attributes = { type: "button", class: "chip", "data-place": place, "aria-label": nameOf(place) + says };
      return element("button", attributes, letterOf(place));
    };
    const level = (places) => {
      const rank = ranks[places[0]];
      const number = element("span", { class: "number", "aria-hidden": "true" }, String(rank));
      return element("li", { class: "level", "aria-label": `Rank ${rank}` }, number, ...places.map(chip));
    };
    this.levels.replaceChildren(...ranking.levels.map(level));
    this.tray.replaceChildren(...ranking.left.map((place) => element("li", {}, chip(place))));
    if (focused) this.section.querySelector(`.chip[data-place="${focused}"]`)?.focus();
  }

  #down(event) {
    const chip = event.target.closest?.(".chip");
    if (!chip || event.button !== 0 || this.drag) return;
    this.drag = { chip, id: event.pointerId, x: event.clientX, y: event.clientY, place: Number(chip.dataset.place) };
    chip.setPointerCapture(event.pointerId);
    // Else a finger that leaves with speed counts as a fling, and the browser takes the next tap for its end.
    chip.addEventListener("touchmove", stop, { passive: false });
  }

  #move(event) {
    const drag = this.drag;
    if (!drag || event.pointerId !== drag.id) return;
    if (!drag.ghost) {
      if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < FAR) return;
      drag.ghost = element("div", { class: "ghost", "aria-hidden": "true" }, letterOf(drag.place));
      document.body.append(drag.ghost);
      document.body.classList.add("dragging");
    }
    drag.ghost.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
    this.#mark(this.#target(event.clientX, event.clientY));
  }

  #up(event) {
    const drag = this.drag;
    if (!drag || event.pointerId !== drag.id) return;
    const target = drag.ghost && this.#target(event.clientX, event.clientY);
    this.#end();
    if (!drag.ghost) return;
    this.dragged = event.timeStamp; // the click that follows is part of the drag
    if (target) this.dropped(drag.place, target);
  }

  #end() {
    this.drag?.ghost?.remove();
    this.drag = null;
    document.body.classList.remove("dragging");
    this.#mark(null);
  }

  #click(event) {
    const chip = event.target.closest?.(".chip");
    if (!chip) return;
    const partOfDrag = this.dragged !== undefined && event.timeStamp - this.dragged < 50;
    this.dragged = undefined;
    if (!partOfDrag) this.pressed(Number(chip.dataset.place), event.detail > 0);
  }

  #target(x, y) {
    if (inside(this.tray.getBoundingClientRect(), x, y)) return { out: true };
    if (!inside(this.section.getBoundingClientRect(), x, y)) return null;
    const levels = [...this.levels.children];
    if (levels.length === 0) return { before: 0 };
    const boxes = levels.map((level) => level.getBoundingClientRect());
    const distance = (box) => Math.max(box.left - x, x - box.right, 0) + 3 * Math.max(box.top - y, y - box.bottom, 0);
    const at = boxes.reduce((best, box, index) => (distance(box) < distance(boxes[best]) ? index : best), 0);
    const share = (x - boxes[at].left) / boxes[at].width;
    if (share < EDGE) return { before: at };
    if (share > 1 - EDGE) return { before: at + 1 };
    return { with: Number(levels[at].querySelector(".chip").dataset.place), level: at };
  }

  #mark(target) {
    const levels = [...this.levels.children];
    levels.forEach((level, at) => {
      level.classList.toggle("before", target?.before === at);
      level.classList.toggle("after", target?.before === levels.length && at === levels.length - 1);
      level.classList.toggle("with", target?.level === at);
    });
    this.tray.classList.toggle("with", Boolean(target?.out));
    this.levels.classList.toggle("with", target?.before === 0 && levels.length === 0);
  }
}

const stop = (event) => event.preventDefault();
const inside = (box, x, y) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;
