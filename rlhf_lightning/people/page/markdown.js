// Text of a model as DOM nodes. Every character of it ends in a text node: nothing is ever parsed as HTML, and an
// address is shown and cannot be clicked.

const DEPTH = 8; // of lists, quotes and emphasis in each other; deeper marks are shown as they are
// None of these patterns can match one text in many ways, so that a hostile text takes no longer than another.
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const BULLET = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const LINK = /^!?\[([^\[\]\n]{0,500})\]\(([^()\s]{0,2000})\)/;
const MARKS = ["**", "__", "~~", "*", "_"];
const TAGS = { "**": "strong", __: "strong", "~~": "s", "*": "em", _: "em" };

export function element(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function markdown(text) {
  const body = document.createDocumentFragment();
  body.append(...blocks(String(text).replace(/\r\n?/g, "\n").split("\n"), 0));
  return body;
}

function blocks(lines, depth) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const reader = line.trim() === "" ? skip : readerOf(line, depth);
    const [node, next] = reader(lines, at, depth);
    if (node) nodes.push(node);
    at = next;
  }
  return nodes;
}

function readerOf(line, depth) {
  if (FENCE.test(line)) return fence;
  if (HEADING.test(line)) return heading;
  if (RULE.test(line)) return rule;
  if (depth < DEPTH && QUOTE.test(line)) return quote;
  if (depth < DEPTH && BULLET.test(line)) return list;
  return paragraph;
}

const skip = (lines, at) => [null, at + 1];
const rule = (lines, at) => [element("hr"), at + 1];

// Without an end, as in an answer that was cut, the code goes on to the last line.
function fence(lines, at) {
  const [, mark, language] = FENCE.exec(lines[at]);
  let end = at + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(mark) && /^\s*[`~]+\s*$/.test(lines[end]))) end += 1;
  const code = element("code", {}, lines.slice(at + 1, end).join("\n"));
  const node = element("pre", { tabindex: "0", role: "group", "aria-label": "Code" });
  if (language.trim()) node.append(element("span", { class: "language" }, language.trim()));
  node.append(code);
  return [node, end + 1];
}

// Below the headings of the page itself.
function heading(lines, at, depth) {
  const [, marks, text] = HEADING.exec(lines[at]);
  const title = text.trimEnd().replace(/ #+$/, "");
  return [element(`h${Math.min(6, marks.length + 3)}`, {}, ...inline(title, depth)), at + 1];
}

function quote(lines, at, depth) {
  const inner = [];
  let end = at;
  for (; end < lines.length && QUOTE.test(lines[end]); end += 1) inner.push(QUOTE.exec(lines[end])[1]);
  return [element("blockquote", {}, ...blocks(inner, depth + 1)), end];
}

function list(lines, at, depth) {
  const [, , mark] = BULLET.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const node = element(ordered ? "ol" : "ul");
  if (ordered) node.start = Number.parseInt(mark, 10);
  let end = at;
  while (end < lines.length) {
    const match = BULLET.exec(lines[end]);
    if (!match || /\d/.test(match[2]) !== ordered) break;
    const indent = match[1].length;
    const inner = [match[3]];
    for (end += 1; end < lines.length && belongs(lines, end, indent); end += 1) {
      inner.push(lines[end].replace(new RegExp(`^\\s{0,${indent + match[2].length + 1}}`), ""));
    }
    node.append(element("li", {}, ...blocks(inner, depth + 1)));
  }
  return [node, end];
}

// Whether a line goes on with the item above: one that is indented, or an empty one before such a line.
function belongs(lines, at, indent) {
  const line = lines[at].trim() === "" ? (lines[at + 1] ?? "") : lines[at];
  return line.trim() !== "" && /^\s*/.exec(line)[0].length > indent;
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== "" && readerOf(lines[end], depth) === paragraph) end += 1;
  return [element("p", {}, ...inline(lines.slice(at, end).join("\n"), depth)), end];
}

function inline(text, depth) {
  const nodes = [];
  const missing = new Set(); // marks without an end further on: looked for once
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  while (at < text.length) {
    const found = "\\`[!*_~".includes(text[at]) ? special(text, at, depth, missing) : null;
    if (!found) {
      plain += text[at];
      at += 1;
    } else if (typeof found.node === "string") {
      plain += found.node;
      at = found.next;
    } else {
      flush();
      nodes.push(found.node);
      at = found.next;
    }
  }
  flush();
  return nodes;
}

function special(text, at, depth, missing) {
  if (text[at] === "\\") return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { node: text[at + 1], next: at + 2 } : null;
  if (text[at] === "`") return code(text, at, missing);
  if (text[at] === "[" || text[at] === "!") return link(text, at);
  return depth < DEPTH ? emphasis(text, at, depth, missing) : null;
}

function code(text, at, missing) {
  const mark = /^`+/.exec(text.slice(at, at + 64))[0];
  const end = missing.has(mark) ? -1 : text.indexOf(mark, at + mark.length);
  if (end < 0) {
    missing.add(mark);
    return { node: mark, next: at + mark.length };
  }
  return { node: element("code", {}, text.slice(at + mark.length, end)), next: end + mark.length };
}

function link(text, at) {
  const match = LINK.exec(text.slice(at, at + 2600));
  if (!match) return null;
  const address = element("span", { class: "address" }, ` (${match[2]})`);
  return { node: element("span", { class: "link" }, match[1], address), next: at + match[0].length };
}

const isWord = (character) => /[\p{L}\p{N}_]/u.test(character ?? "");

function closes(text, end, mark) {
  if (/\s/.test(text[end - 1])) return false;
  if (mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark)) return false;
  return mark[0] !== "_" || !isWord(text[end + mark.length]);
}

function emphasis(text, at, depth, missing) {
  const mark = MARKS.find((each) => text.startsWith(each, at));
  if (!mark || missing.has(mark)) return null;
  const start = at + mark.length;
  if (/\s/.test(text[start] ?? " ") || (mark[0] === "_" && isWord(text[at - 1]))) return null;
  if (/\d/.test(text[at - 1] ?? "") && /\d/.test(text[start])) return null; // 2*3*4
  let end = text.indexOf(mark, start + 1);
  while (end >= 0 && !closes(text, end, mark)) end = text.indexOf(mark, end + mark.length);
  if (end < 0) {
    missing.add(mark);
    return null;
  }
  if (mark.length === 2 && text[end + 2] === mark[0]) end += 1; // ***both***
  const inner = inline(text.slice(start, end), depth + 1);
  return { node: element(TAGS[mark], {}, ...inner), next: end + mark.length };
}
