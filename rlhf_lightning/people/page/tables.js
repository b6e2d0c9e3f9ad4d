// Figures and tables for who leads, looked up again and again. A figure that is not there yet shows as a dash.

import { element } from "./markdown.js";
import { complain, get } from "./voice.js";

const EVERY = 10000; // milliseconds between two looks, while the page can be seen
const NONE = "–";

const known = (format) => (value) => (typeof value === "number" && Number.isFinite(value) ? format(value) : NONE);
export const count = known(String);
export const percent = known((value) => `${(100 * value).toFixed(1)} %`);
export const figure = known((value) => value.toFixed(3));
export const seconds = known((value) => `${value.toFixed(1)} s`);
export const short = (value) => (value === null || value === undefined || value === "" ? NONE : String(value));
export const words = (value) => short(value); // text of any length, in a column of its own kind

// A mean with its standard error, or a number alone.
export function share(value) {
  const { mean, stderr } = typeof value === "object" && value !== null ? value : { mean: value };
  return percent(mean) + (typeof stderr === "number" ? ` ± ${(100 * stderr).toFixed(1)}` : "");
}

function cell(tag, format, text, attributes) {
  return element(tag, format === words ? { ...attributes, class: "words", dir: "auto" } : attributes, text);
}

function line(row, columns) {
  const [[first, , format], ...others] = columns;
  const cells = others.map(([key, , shown]) => cell("td", shown, shown(row[key]), {}));
  return element("tr", {}, cell("th", format, format(row[first]), { scope: "row" }), ...cells);
}

// `columns`: key of a row, title, format, meaning.
export function table(id, columns, rows, nothing) {
  const head = columns.map(([, title, format]) => cell("th", format, title, { scope: "col" }));
  const body = rows.map((row) => line(row, columns));
  if (rows.length === 0) {
    body.push(element("tr", {}, element("td", { class: "words", colspan: columns.length }, nothing)));
  }
  get(id).replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

export function figures(columns, answer) {
  const shown = columns.map(([key, title, format]) =>
    element("div", {}, element("dt", {}, title), element("dd", {}, format(answer[key]))),
  );
  get("figures").replaceChildren(...shown);
}

// Show what the server says, now, every few seconds, and when asked to.
export function follow(show, columns) {
  async function look() {
    try {
      const response = await fetch("/api/lead", { cache: "no-store", credentials: "same-origin" });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
      show(answer);
      get("at").textContent = new Date().toLocaleTimeString();
      complain("");
    } catch (error) {
      complain(error instanceof TypeError ? "The server does not answer. These figures are old." : error.message);
    }
  }
  const told = columns.filter(([, , , meaning]) => meaning);
  const meanings = ([, title, , meaning]) => [element("dt", {}, title), element("dd", {}, meaning)];
  get("meanings").replaceChildren(...told.flatMap(meanings));
  get("again").addEventListener("click", look);
  setInterval(() => document.hidden || look(), EVERY);
  look();
}
