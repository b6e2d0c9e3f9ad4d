// Which key does what. A key pressed in a field for text, or one that a button or a choice needs itself, is left alone.

import { LETTERS } from "./ranking.js";

const STEPS = { ArrowLeft: -1, ArrowRight: 1 };
const FOCUS = { ArrowUp: -1, ArrowDown: 1 };

// On a keyboard without Latin letters, by where the key is.
export function letterOfKey(event) {
  if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
  return event.key.length === 1 && /^Key[A-Z]$/.test(event.code) ? event.code.slice(3).toLowerCase() : null;
}

// The action of a key: [name, argument, ...], or null.
export function actionOf(event, count) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return textAction(event);
  const target = event.target;
  if (target.closest("textarea, select, input:not([type=radio], [type=checkbox])")) return null;
  if (event.repeat && !(event.key in FOCUS)) return null;
  if (target.closest("button, summary, a, input") && (event.key === " " || event.key === "Enter")) return null;
  if (target.closest("input, pre, .raw") && event.key.startsWith("Arrow")) return null;
  return letterAction(event, count) ?? otherAction(event);
}

function textAction(event) {
  return (event.ctrlKey || event.metaKey) && event.key === "Enter" ? ["send"] : null;
}

function letterAction(event, count) {
  const letter = letterOfKey(event);
  if (letter === null) return null;
  if (letter === "u") return ["undo"];
  const place = LETTERS.indexOf(letter);
  return place >= 0 && place < count ? ["press", place, event.shiftKey] : null;
}

function otherAction(event) {
  if (event.key in STEPS) return ["move", STEPS[event.key]];
  if (event.key in FOCUS) return ["focus", FOCUS[event.key]];
  if (/^[1-9]$/.test(event.key)) return ["digit", Number(event.key)];
  const names = { Enter: "send", " ": "skip", "=": "tie", Backspace: "takeLast", Escape: "clear", "?": "help" };
  return event.key in names ? [names[event.key]] : null;
}
