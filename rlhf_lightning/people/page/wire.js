// Talks to the server. A judgement that is on its way lies in localStorage until the server has it: a server that is
// away, a reload or a closed tab loses nothing, and the same key never makes a second record.

const WAITS = [500, 1000, 2000, 4000, 8000]; // milliseconds between tries; the last one again and again

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export class Wire {
  constructor() {
    this.session = null;
    this.undoKey = null;
  }

  async open() {
    this.session = await this.#ask("GET", "/api/session");
    return this.session;
  }

  async enter(name) {
    this.session = await this.#ask("POST", "/api/session", { name });
    return this.session;
  }

  next = () => this.#ask("GET", "/api/next");

  // The same key until the server has answered: a try that was heard and not answered takes back no second one.
  async undo() {
    this.undoKey ??= newKey();
    const answer = await this.#again(() => this.#ask("POST", "/api/undo", { key: this.undoKey }));
    this.undoKey = null;
    return answer;
  }

  // Until the server has it. `waits(message)` is told of each try that failed.
  async send(judgement, waits) {
    this.#keep(judgement);
    for (let tries = 0; ; tries += 1) {
      try {
        const answer = await this.#again(() => this.#ask("POST", "/api/judgements", judgement));
        this.#keep(null);
        this.undoKey = null;
        return answer;
      } catch (error) {
        if (error instanceof Refused && !passing(error.status)) {
          this.#keep(null);
          throw error;
        }
        waits(error.message);
        await pause(WAITS[Math.min(tries, WAITS.length - 1)]);
      }
    }
  }

  // Lines of JSON, each as soon as it is there.
  async *lines(path, body, signal) {
    const response = await this.#again(() => this.#fetch("POST", path, body, signal));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read().catch(() => ({ done: true })); // the server has gone
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part);
    }
  }

  // What a page before this one could not send, for this person and these rows.
  pending() {
    return read(localStorage, this.#place);
  }

  get #place() {
    return `pending ${this.session.data ?? ""} ${this.session.annotator}`;
  }

  #keep(judgement) {
    write(localStorage, this.#place, judgement);
  }

  // The secret against writes from other pages changes when the server starts again.
  async #again(ask) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 403) throw error;
      const { annotator } = this.session;
      if ((await this.open()).annotator !== annotator) throw error;
      return ask();
    }
  }

  async #ask(method, path, body) {
    const response = await this.#fetch(method, path, body, AbortSignal.timeout(15000));
    return response.json().catch(() => ({}));
  }

  async #fetch(method, path, body, signal) {
    const headers = { Accept: "application/json" };
    if (body) {
      headers["Content-Type"] = "application/json";
      headers["X-Label-Token"] = this.session?.csrf ?? "";
    }
    const how = { method, headers, body: body && JSON.stringify(body), cache: "no-store", credentials: "same-origin" };
    let response;
    try {
      response = await fetch(path, { ...how, signal });
    } catch {
      throw new Error("The server does not answer.");
    }
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    throw new Refused(error ?? `The server answered ${response.status}.`, response.status);
  }
}

const passing = (status) => status >= 500 || status === 408 || status === 429;
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// Storage may be full or switched off: the page works without it.
export function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(name));
  } catch {
    return null;
  }
}

export function write(storage, name, value) {
  try {
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, JSON.stringify(value));
  } catch {
    return false;
  }
  return true;
}

// `crypto.randomUUID` is there on https and loopback only.
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
