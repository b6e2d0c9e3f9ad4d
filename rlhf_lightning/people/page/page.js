// One item at a time, from the server to a person and back.

import { Board } from "./board.js";
import { Card, content, letterOf, nameOf } from "./cards.js";
import { Clock, dropDraft, findDraft, keepDraft } from "./draft.js";
import { Ranking } from "./ranking.js";
import { alone, complain, get, progress, say } from "./voice.js";
import { newKey, Wire } from "./wire.js";

const strengths = () => document.querySelectorAll("#strength input");

export class Page {
  constructor() {
    this.wire = new Wire();
    this.clock = new Clock();
    this.board = new Board(
      (place, byPointer) => this.press(place, false, byPointer),
      (place, target) => this.drop(place, target),
    );
    this.item = null;
    this.cards = [];
    this.current = null; // the place that keys for one answer are about
    this.busy = false;
  }

  async start() {
    await alone(this, async () => this.#opened(await this.wire.open()));
  }

  async enter(name) {
    await alone(this, async () => this.#opened(await this.wire.enter(name)));
  }

  async look() {
    await alone(this, async () => this.show(await this.wire.next()));
  }

  async #opened(session) {
    complain("");
    get("question").textContent = session.question;
    document.title = session.question;
    get("who").textContent = session.annotator ?? "";
    progress(session.progress);
    get("name").hidden = !(session.named && session.annotator === null);
    if (session.annotator === null) {
      if (session.named) get("annotator").focus();
      else complain("Open the link that you were given: it says who you are.");
      return;
    }
    const pending = this.wire.pending();
    if (pending) await this.deliver(pending, "Sent what this page still had.");
    else this.show(await this.wire.next());
  }

  show({ item, progress: counts }) {
    this.item = item;
    progress(counts);
    get("finished").hidden = Boolean(item);
    get("board").hidden = false; // where nothing is left, the last one can still be taken back
    for (const id of ["work", "skip", "send", "scale", "tray"]) get(id).hidden = !item;
    if (!item) {
      this.cards = [];
      get("finished").focus();
      return;
    }
    this.#fill(item);
    get("prompt-title").focus({ preventScroll: true });
    scrollTo(0, 0);
  }

  #fill(item) {
    const { session } = this.wire;
    const plain = get("plain").checked;
    const pair = item.answers.length === 2;
    get("prompt").replaceChildren(content(item.prompt, plain));
    this.cards = item.answers.map((answer, place) => new Card(place, answer, session, plain));
    get("cards").replaceChildren(...this.cards.map((card) => card.node));
    get("strength").hidden = !pair;
    get("note-box").hidden = !session.note;
    this.ranking = new Ranking(item.answers.length);
    this.current = null;
    const before = findDraft(session, item) ?? item.given ?? {};
    this.ranking.ranks = before.ranks ?? [];
    this.cards.forEach((card, place) => {
      card.rating = before.ratings?.[place] ?? null;
      card.flags = before.flags?.[place] ?? [];
    });
    get("note").value = before.note ?? "";
    this.strength = before.strength ?? null;
    this.clock.start(before.seconds ?? 0);
    this.#ranked();
    this.#checkStrength();
    get("work").dataset.item = item.id;
  }

  // --- what a person does

  press(place, tie, byPointer = false) {
    if (this.busy) return;
    this.ranking.press(place, tie);
    this.#changed(place);
    if (byPointer) this.#focus(place); // so that Enter sends, instead of pressing the button again
  }

  drop(place, target) {
    if (this.busy) return;
    if (target.out) this.ranking.take(place);
    else if (target.before !== undefined) this.ranking.insert(place, target.before);
    else this.ranking.join(place, target.with);
    this.#changed(place);
  }

  act([name, ...given]) {
    if (this.busy || (!this.item && name !== "undo")) return;
    const actions = {
      send: () => this.send(false),
      skip: () => this.send(true),
      undo: () => this.undo(),
      help: () => get("help").toggleAttribute("open"),
      press: (place, tie) => {
        this.press(place, tie);
        this.#focus(place);
      },
      focus: (step) => this.#step(step),
      move: (step) => this.#onCurrent((place) => this.ranking.move(place, step)),
      tie: () => {
        if (this.cards.length === 2) this.current ??= 0; // both, whichever it is
        this.#onCurrent((place) => this.ranking.tie(place));
      },
      takeLast: () => this.#changed(this.ranking.takeLast() ?? null),
      clear: () => {
        this.ranking.levels = [];
        this.#changed(null);
      },
      digit: (digit) => this.#digit(digit),
    };
    actions[name](...given);
  }

  async send(skipped) {
    if (!skipped && !this.ranking.complete()) {
      const names = this.ranking.left.map(letterOf).join(", ");
      complain(`Not ranked yet: ${names}. Rank them, or skip with the space bar.`);
      return;
    }
    this.#ranked();
    const { session } = this.wire;
    const pair = this.item.answers.length === 2 && !skipped && this.ranking.levels.length === 2;
    const judgement = {
      key: newKey(),
      item: this.item.id,
      order: this.item.order,
      ...this.#draft(),
      ranks: skipped ? null : this.ranking.ranks,
      strength: pair ? this.strength : null,
    };
    if (!session.rating) judgement.ratings = null;
    if (session.flags.length === 0) judgement.flags = null;
    await this.deliver(judgement, skipped ? "Skipped. Undo brings it back." : `Saved: ${this.#said()}.`);
  }

  async deliver(judgement, done) {
    const item = this.item;
    await alone(this, async () => {
      let answer;
      try {
        answer = await this.wire.send(judgement, (why) => complain(`Not saved yet. ${why} Trying again …`));
      } catch (error) {
        complain(`Not saved. ${error.message}`);
        if (item) return;
        this.show(await this.wire.next());
        return;
      }
      if (item) dropDraft(this.wire.session, item);
      complain("");
      this.show(answer);
      say(done);
    });
  }

  async undo() {
    await alone(this, async () => {
      complain("");
      this.show(await this.wire.undo());
      say("Taken back. It counts again when you send it.");
    });
  }

  // --- what a person sees and hears

  #changed(place) {
    this.current = place;
    complain("");
    this.#ranked();
    this.keep();
    if (place === null) say("No answer is ranked.");
    else say(`${nameOf(place)}: ${this.#rankOf(place)}.`);
  }

  #ranked() {
    this.cards.forEach((card, place) => {
      card.rank = this.#rankOf(place);
    });
    this.board.show(this.ranking);
    for (const input of strengths()) input.disabled = this.ranking.levels.length !== 2;
  }

  #rankOf(place) {
    const level = this.ranking.levels[this.ranking.levelOf(place)];
    if (!level) return "no rank";
    const others = level.filter((other) => other !== place).map(letterOf);
    return `rank ${this.ranking.ranks[place]}${others.length > 0 ? `, same as ${others.join(", ")}` : ""}`;
  }

  #said() {
    return this.ranking.levels.map((level) => level.map(letterOf).join(" = ")).join(", then ");
  }

  plain(plain) {
    get("prompt").replaceChildren(content(this.item.prompt, plain));
    for (const card of this.cards) card.write(plain);
  }

  choose(strength) {
    this.strength = strength;
    this.keep();
  }

  // --- details

  #draft() {
    return {
      ranks: this.ranking.ranks,
      ratings: this.cards.map((card) => card.rating),
      flags: this.cards.map((card) => card.flags),
      note: get("note").value,
      strength: this.strength,
      seconds: Math.round(this.clock.seconds * 1000) / 1000,
    };
  }

  keep() {
    if (this.item) keepDraft(this.wire.session, this.item, this.#draft());
  }

  #onCurrent(change) {
    if (this.current === null) return say("Choose an answer first: arrow down, or its letter.");
    change(this.current);
    this.#changed(this.current);
  }

  #step(step) {
    const last = this.cards.length - 1;
    const from = this.current ?? (step > 0 ? -1 : last + 1);
    const place = Math.min(last, Math.max(0, from + step));
    this.#focus(place);
    this.cards[place].node.scrollIntoView({ block: "nearest" });
  }

  #focus(place) {
    this.cards[place].node.focus({ preventScroll: true });
  }

  #digit(digit) {
    const { rating } = this.wire.session;
    const card = this.cards[this.current];
    if (rating && card && digit >= rating.low && digit <= rating.high) {
      card.rating = card.rating === digit ? null : digit;
      say(`${nameOf(this.current)}, ${rating.label}: ${card.rating ?? "no rating"}.`);
    } else if (!rating && this.ranking.levels.length === 2 && this.cards.length === 2 && digit <= 3) {
      this.strength = this.strength === digit ? null : digit;
      this.#checkStrength();
    }
    this.keep();
  }

  #checkStrength() {
    for (const input of strengths()) input.checked = Number(input.value) === this.strength;
  }
}
