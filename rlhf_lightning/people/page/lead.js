// The page for the lead: how far people are, how far they agree, and what to talk about.

import { count, figure, figures, follow, percent, seconds, share, short, table, words } from "./tables.js";

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
  ["progress", "Done", short, "Items done, of those that are this person's."],
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

function said(ranks) {
  return Object.entries(ranks ?? {}).map(([annotator, values]) => `${annotator}: ${values.join(" ")}`).join("\n");
}

function show(answer) {
  figures(FIGURES, answer);
  const progress = ({ done, of }) => `${count(done)} of ${count(of)}`;
  const people = (answer.people ?? []).map((each) => ({ ...each, progress: progress(each) }));
  table("people", PEOPLE, people, "Nobody has begun.");
  const items = (answer.to_discuss ?? []).map((each) => ({ ...each, rankings: said(each.ranks) }));
  table("discuss", DISCUSS, items, "None: where two people have ranked the same item, they say the same.");
}

follow(show, [...FIGURES, ...PEOPLE, ...DISCUSS]);
