// The order that a person gives to K answers. Answers are numbered by their place on the page, from 0. No DOM here.

export const LETTERS = "asdfghjklqwertyiopzxcvbnm"; // no u: it undoes

export class Ranking {
  constructor(count) {
    this.count = count;
    this.levels = []; // best first; the answers of one level are tied
  }

  // Ranks in the order shown, 1 for the best, as in sport: 1, 2, 2, 4. An answer without a rank has 0.
  get ranks() {
    const ranks = new Array(this.count).fill(0);
    let before = 0;
    for (const level of this.levels) {
      for (const place of level) ranks[place] = before + 1;
      before += level.length;
    }
    return ranks;
  }

  set ranks(ranks) {
    const values = [...new Set(ranks.filter((rank) => rank > 0))].sort((a, b) => a - b);
    this.levels = values.map((value) => [...ranks.keys()].filter((place) => ranks[place] === value));
  }

  get left() {
    const ranks = this.ranks;
    return [...ranks.keys()].filter((place) => ranks[place] === 0);
  }

  levelOf(place) {
    return this.levels.findIndex((level) => level.includes(place));
  }

  // The next answer in order, or beside the last one. One that has a rank already loses it.
  press(place, tie) {
    if (this.count === 2) return this.#prefer(place, tie);
    if (this.levelOf(place) >= 0) return this.take(place);
    if (tie && this.levels.length > 0) this.levels.at(-1).push(place);
    else this.levels.push([place]);
  }

  // Of a pair, the other one is the worse. The same press again takes both out.
  #prefer(place, tie) {
    const wanted = tie ? [[0, 1]] : [[place], [1 - place]];
    const same = this.levels.length === wanted.length && (tie || this.levels[0][0] === place);
    this.levels = same ? [] : wanted;
  }

  // The last one needs no press of its own.
  complete() {
    const left = this.left;
    if (left.length === 1) this.levels.push(left);
    return this.left.length === 0;
  }

  take(place) {
    if (this.count === 2) this.levels = [];
    this.levels = this.levels.map((level) => level.filter((other) => other !== place)).filter((level) => level.length);
  }

  takeLast() {
    const place = this.levels.at(-1)?.at(-1);
    if (place !== undefined) this.take(place);
    return place;
  }

  // One step better (-1) or worse (1): out of a tie, else past the next level.
  move(place, step) {
    const at = this.levelOf(place);
    if (at < 0) return this.press(this.count === 2 && step > 0 ? 1 - place : place, false);
    if (this.levels[at].length > 1) return this.insert(place, step < 0 ? at : at + 1);
    const to = at + step;
    if (to < 0 || to >= this.levels.length) return;
    [this.levels[at], this.levels[to]] = [this.levels[to], this.levels[at]];
  }

  // The same level as the answers above; pressed again, a level of its own below them.
  tie(place) {
    const at = this.levelOf(place);
    if (at < 0 || this.count === 2) return this.press(place, true);
    if (this.levels[at].length > 1) return this.insert(place, at + 1);
    if (at > 0) this.join(place, this.levels[at - 1][0]);
  }

  // A level of its own before the one that is now at `at`.
  insert(place, at) {
    const levels = this.levels.map((level) => level.filter((other) => other !== place));
    levels.splice(at, 0, [place]);
    this.levels = levels.filter((level) => level.length);
    if (this.count === 2) this.complete();
  }

  join(place, other) {
    if (place === other) return;
    this.levels = this.levels.map((level) => level.filter((each) => each !== place)).filter((level) => level.length);
    const at = this.levelOf(other);
    if (at < 0) this.levels.push([other, place]);
    else this.levels[at].push(place);
  }
}
