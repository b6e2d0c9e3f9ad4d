// The page for who leads the arena: ratings and win rates of the policies.

import { count, figures, follow, percent, table, words } from "./tables.js";

const POINTS = 400 / Math.log(10); // of the usual scale per unit of log-odds
const points = (value) => `${value > 0 ? "+" : ""}${Math.round(POINTS * value) || 0}`;
const range = (low, high, format) => `${format(low)} to ${format(high)}`;
const bound = (value) => (100 * value).toFixed(1);
const rate = ({ share, low, high }) => `${percent(share)} (${range(low, high, bound)})`;

// Key of the answer, title, format, meaning.
const FIGURES = [
  ["votes", "Votes", count, ""],
  ["skipped", "Skipped", count, ""],
  ["people", "People", count, ""],
  ["left", "A wins", rate, "How often the answer at the left wins, ties half: about half where places do not matter."],
];
const RATINGS = [
  ["policy", "Policy", words, ""],
  ["rating", "Rating", points, "Bradley-Terry, mean 0, on the scale of chess: 400 points more are odds of 10 to 1."],
  ["interval", "95 % interval", String, ""],
  ["votes", "Votes", count, ""],
];
const PAIRS = [
  ["first", "Policy", words, ""],
  ["second", "Against", words, ""],
  ["wins", "Wins", count, ""],
  ["losses", "Losses", count, ""],
  ["both_good", "Both good", count, ""],
  ["both_bad", "Both bad", count, ""],
  ["win_rate", "Win rate", rate, "Of the first policy, ties half, with Wilson's 95 % interval."],
];
const PEOPLE = [
  ["annotator", "Person", words, ""],
  ["votes", "Votes", count, ""],
];

function show(answer) {
  figures(FIGURES, answer);
  const ratings = answer.ratings.map((each) => ({ ...each, interval: range(each.low, each.high, points) }));
  table("ratings", RATINGS, ratings, "Nobody has voted.");
  table("pairs", PAIRS, answer.pairs, "Nobody has voted.");
  table("people", PEOPLE, answer.annotators, "Nobody has voted.");
}

follow(show, [...FIGURES, ...RATINGS, ...PAIRS]);
