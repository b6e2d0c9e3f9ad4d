// What a person has done with an item and not sent yet: it survives a reload of the page.

import { read, write } from "./wire.js";

// Seconds in which the page could be seen.
export class Clock {
  constructor(seconds = 0) {
    this.before = seconds;
    this.since = performance.now();
    document.addEventListener("visibilitychange", () => this.#turn());
  }

  start(seconds) {
    this.before = seconds;
    this.since = performance.now();
  }

  get seconds() {
    return this.before + (document.hidden ? 0 : (performance.now() - this.since) / 1000);
  }

  #turn() {
    if (document.hidden) this.before += (performance.now() - this.since) / 1000;
    this.since = performance.now();
  }
}

const nameOf = (session, item) => `draft ${session.data ?? ""} ${session.annotator} ${item.id}`;

export function keepDraft(session, item, draft) {
  write(sessionStorage, nameOf(session, item), { ...draft, order: item.order });
}

export function dropDraft(session, item) {
  write(sessionStorage, nameOf(session, item), null);
}

// In the order that is shown now, which may be another one.
export function findDraft(session, item) {
  const draft = read(sessionStorage, nameOf(session, item));
  if (!draft || draft.order?.length !== item.order.length) return null;
  const moved = (values) => values && item.order.map((answer) => values[draft.order.indexOf(answer)]);
  return { ...draft, ranks: moved(draft.ranks), ratings: moved(draft.ratings), flags: moved(draft.flags) };
}
