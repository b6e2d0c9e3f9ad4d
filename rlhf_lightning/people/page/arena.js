// The arena: a prompt goes to the server, two answers come back while they are written, and a vote goes there.

import { Answers } from "./battle.js";
import { Clock } from "./draft.js";
import { letterOfKey } from "./keys.js";
import { alone, complain, get, say } from "./voice.js";
import { newKey, Wire } from "./wire.js";

const VOTES = {
  left: { ranks: [1, 2], says: "A is better" },
  right: { ranks: [2, 1], says: "B is better" },
  good: { ranks: [1, 1], flags: [["good"], ["good"]], says: "both are good" },
  bad: { ranks: [1, 1], flags: [["bad"], ["bad"]], says: "both are bad" },
  skip: { ranks: null, says: "skipped" },
};
const KEYS = { a: "left", b: "right", d: "right", t: "good", x: "bad", s: "skip" };
const ARROWS = { ArrowLeft: "left", ArrowRight: "right" };

class Arena {
  constructor() {
    this.wire = new Wire();
    this.clock = new Clock();
    this.answers = new Answers();
    this.item = null; // what is to be voted on
    this.writing = null; // ends what is being written
    this.busy = false;
  }

  start = () => alone(this, async () => this.#opened(await this.wire.open()));
  enter = (name) => alone(this, async () => this.#opened(await this.wire.enter(name)));

  async #opened(session) {
    complain("");
    get("question").textContent = session.question;
    document.title = session.question;
    get("who").textContent = session.annotator ?? "";
    get("name").hidden = !(session.named && session.annotator === null);
    if (session.annotator === null) {
      if (session.named) get("annotator").focus();
      else complain("Open the link that you were given: it says who you are.");
      return;
    }
    for (const id of ["work", "board"]) get(id).hidden = false;
    const pending = this.wire.pending();
    if (pending) await this.#deliver(pending, "Sent what this page still had.");
    else this.#show(await this.wire.next());
  }

  // What the server says is to be voted on, if anything is.
  #show({ item, progress, given }) {
    get("count").textContent = progress.done === 1 ? "1 vote" : `${progress.done} votes`;
    this.prompts = given > 0;
    this.item = item;
    this.#state();
    if (!item) return;
    this.answers.show(item.prompt, item.answers);
    this.clock.start(0);
    get("answers-title").focus({ preventScroll: true });
  }

  #state() {
    const waits = this.item === null && this.writing === null;
    get("ask").hidden = !waits;
    get("given").hidden = !this.prompts;
    get("stop").hidden = this.writing === null;
    get("undo").hidden = this.writing !== null;
    for (const id of ["votes", "skip"]) get(id).hidden = this.item === null;
    document.body.dataset.state = this.writing ? "writing" : this.item ? "voting" : "asking";
    if (!waits) return;
    if (this.prompts) get("question").focus();
    else get("own").focus();
  }

  // --- what a person does

  async ask(prompt) {
    if (this.busy || this.item || this.writing) return;
    complain("");
    say("Two answers are being written.");
    this.writing = new AbortController();
    this.answers.begin(prompt);
    this.#state();
    let told = null;
    try {
      told = await this.#read(prompt, this.writing.signal);
      get("own").value = "";
    } catch (error) {
      if (this.writing.signal.aborted) say("Stopped.");
      else complain(error.message);
    }
    this.writing = null;
    if (told) {
      this.#show(told);
      say("Both answers are there. Which is better?");
    } else {
      this.answers.clear();
      this.#state();
    }
  }

  async #read(prompt, signal) {
    for await (const line of this.wire.lines("/api/battles", { prompt }, signal)) {
      if (line.error) throw new Error(line.error);
      if (line.prompt !== undefined) {
        this.answers.prompt = line.prompt;
        this.answers.write();
      } else if (line.place !== undefined) this.answers.take(line);
      else return line;
    }
    throw new Error("The server ended before both answers were there. Ask again.");
  }

  async vote(name) {
    if (this.busy || !this.item) return;
    const { ranks, flags = null, says } = VOTES[name];
    const seconds = Math.round(this.clock.seconds * 1000) / 1000;
    const vote = { key: newKey(), item: this.item.id, order: this.item.order, ranks, flags, seconds };
    await alone(this, () => this.#deliver(vote, `Saved: ${says}.`));
  }

  async #deliver(vote, done) {
    let answer;
    try {
      answer = await this.wire.send(vote, (why) => complain(`Not saved yet. ${why} Trying again …`));
    } catch (error) {
      complain(`Not saved. ${error.message}`);
      this.#show(await this.wire.next());
      return;
    }
    complain("");
    this.#show(answer);
    if (answer.authors && this.answers.sides.length > 0) this.answers.tell(answer.authors);
    say(answer.authors ? `${done} A was ${answer.authors[0]}, B was ${answer.authors[1]}.` : done);
  }

  async undo() {
    if (this.busy || this.writing) return;
    await alone(this, async () => {
      complain("");
      this.#show(await this.wire.undo());
      say("Taken back. Vote again.");
    });
  }

  stop = () => this.writing?.abort();

  plain(plain) {
    this.answers.plain = plain;
    this.answers.write();
  }
}

const arena = new Arena();
const own = get("own");
const submit = () => own.value.trim() && arena.ask(own.value.trim());

// A key pressed in a field for text, or one that a button needs itself, is left alone.
function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return null;
  if (event.key === "Escape") return () => (event.target === own ? own.blur() : arena.stop());
  if (event.target === own) return event.key === "Enter" && !event.shiftKey ? submit : null;
  if (event.target.closest("input:not([type=checkbox])")) return null;
  if (event.target.closest("pre, .raw") && event.key in ARROWS) return null;
  const letter = letterOfKey(event);
  const others = {
    u: () => arena.undo(),
    g: () => arena.prompts && arena.ask(null),
    n: () => own.focus(),
    "?": () => get("help").toggleAttribute("open"),
  };
  const name = ARROWS[event.key] ?? KEYS[letter];
  return name ? () => arena.vote(name) : (others[letter ?? event.key] ?? null);
}

document.addEventListener("keydown", (event) => {
  const action = key(event);
  if (action === null) return;
  event.preventDefault();
  action();
});
for (const button of document.querySelectorAll("[data-vote]")) {
  button.addEventListener("click", () => arena.vote(button.dataset.vote));
}
get("undo").addEventListener("click", () => arena.undo());
get("stop").addEventListener("click", () => arena.stop());
get("given").addEventListener("click", () => arena.ask(null));
get("plain").addEventListener("change", (event) => arena.plain(event.target.checked));
get("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
get("name").addEventListener("submit", (event) => {
  event.preventDefault();
  arena.enter(get("annotator").value.trim());
});

arena.start();
