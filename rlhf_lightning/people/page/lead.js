// The page for the lead: how far people are, how far they agree, and what to talk about. A figure that is not there
// yet shows as a dash.

import { element } from "./markdown.js";
import { complain, get } from "./voice.js";

const EVERY = 10000; // milliseconds between two looks, while the page can be seen
const NONE = "–";

const known = (format) => (value) => (typeof value === "number" && Number.isFinite(value) ? format(value) : NONE);
const count = known(String);
const percent = known((value) => `${(100 * value).toFixed(1)} %`);
const figure = known((value) => value.toFixed(3));
const seconds = known((value) => `${value.toFixed(1)} s`);
const words = (value) => (value === null || value === undefined || value === "" ? NONE : String(value));

// A mean with its standard error, or a number alone.
function share(value) {
  const { mean, stderr } = typeof value === "object" && value !== null ? value : { mean: value };
  return percent(mean) + (typeof stderr === "number" ? ` ± ${(100 * stderr).toFixed(1)}` : "");
}

const bias = (value) => ((value?.mean ?? value) > 0 ? "+" : "") + share(value);

// Key of the answer, title, format, meaning.
const FIGURES = [
  ["items", "Items", count, ""],
  ["ranked", "Items ranked", count, "By at least one person."],
  ["shared", "Ranked by several", count, "By at least two people; agreement is measured on these."],
  ["judgements", "Rankings", count, ""],
  ["agreement", "Agreement", share, "Of the pairs of answers that two people ranked, how many they rank alike."],
  ["alpha", "Alpha", figure, "Krippendorff's alpha: 1 is full agreement, 0 what chance gives."],
  ["tau", "Kendall's tau", figure, "Mean over pairs of people and items: 1 is the same order, -1 the opposite one."],
];
const PEOPLE = [
  ["annotator", "Person", words, ""],
  ["progress", "Done", words, "Items done, of those that are this person's."],
  ["skipped", "Skipped", count, ""],
  ["seconds", "Time per item", seconds, "The median."],
  ["with_others", "With others", share, "Agreement with everybody else on the same items."],
  ["with_self", "With oneself", share, "Agreement with what the same person said of the item before."],
  ["position", "Position", bias, "How much more often than by chance the answer at the top is ranked first."],
  ["length", "Length", bias, "How much more often than half the longer of two answers is preferred."],
];
const DISCUSS = [
  ["item", "Item", count, ""],
  ["disagreement", "Disagreement", percent, "1 less the agreement of all who ranked the item."],
  ["prompt", "Prompt", words, ""],
  ["rankings", "Who said what", words, "Ranks in the order of the file, 1 for the best."],
];
const WORDS = new Set(["annotator", "prompt", "rankings"]);

function cell(tag, key, text, attributes) {
  return element(tag, WORDS.has(key) ? { ...attributes, class: "words", dir: "auto" } : attributes, text);
}

function line(row, columns) {
  const [[first, , format], ...others] = columns;
  const cells = others.map(([key, , shown]) => cell("td", key, shown(row[key]), {}));
  return element("tr", {}, cell("th", first, format(row[first]), { scope: "row" }), ...cells);
}

function fill(table, columns, rows, nothing) {
  const head = columns.map(([key, title]) => cell("th", key, title, { scope: "col" }));
  const body = rows.map((row) => line(row, columns));
  if (rows.length === 0) {
    body.push(element("tr", {}, element("td", { class: "words", colspan: columns.length }, nothing)));
  }
  table.replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

function said(ranks) {
  return Object.entries(ranks ?? {}).map(([annotator, values]) => `${annotator}: ${values.join(" ")}`).join("\n");
}

function show(answer) {
  const figures = FIGURES.map(([key, title, format]) =>
    element("div", {}, element("dt", {}, title), element("dd", {}, format(answer[key]))),
  );
  get("figures").replaceChildren(...figures);
  const progress = ({ done, of }) => `${count(done)} of ${count(of)}`;
  const people = (answer.people ?? []).map((each) => ({ ...each, progress: progress(each) }));
  fill(get("people"), PEOPLE, people, "Nobody has begun.");
  const items = (answer.to_discuss ?? []).map((each) => ({ ...each, rankings: said(each.ranks) }));
  fill(get("discuss"), DISCUSS, items, "None: where two people have ranked the same item, they say the same.");
  get("at").textContent = new Date().toLocaleTimeString();
}

function explain() {
  const told = [...FIGURES, ...PEOPLE, ...DISCUSS].filter(([, , , meaning]) => meaning);
  get("meanings").replaceChildren(
    ...told.flatMap(([, title, , meaning]) => [element("dt", {}, title), element("dd", {}, meaning)]),
  );
}

async function look() {
  try {
    const response = await fetch("/api/lead", { cache: "no-store", credentials: "same-origin" });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
    show(answer);
    complain("");
  } catch (error) {
    complain(error instanceof TypeError ? "The server does not answer. These figures are old." : error.message);
  }
}

explain();
look();
get("again").addEventListener("click", look);
setInterval(() => document.hidden || look(), EVERY);
