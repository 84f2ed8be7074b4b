// The view of all pairs: a heat map that is a table, and the pairs whose rank changed the most.

import { digitsFor, el, fixed, label, pairLabel } from "./dom.js";
import { correlation, ranks } from "./linear.js";

const STEPS = 9;
const SHOWN = 8;
const MANY = 12; // photos from which the cells are drawn small

/** Positions [i, j] of the pairs of n photos, i below j. */
export function pairsOf(n) {
  return Array.from({ length: n }, (_, i) => Array.from({ length: n - i - 1 }, (_, k) => [i, i + 1 + k])).flat();
}

/**
 * Draw the view.
 *
 * @param {Element} root
 * @param {{photos: object[], space: string, reply: object, other?: {space: string, reply: object}}} of
 *   at least two photos, the answer of /similarity, and that in the other space if asked for.
 */
export function draw(root, { photos, space, reply, other }) {
  const matrix = reply.similarities;
  const pairs = pairsOf(photos.length);
  const values = pairs.map(([i, j]) => matrix[i][j]);
  root.replaceChildren(
    extremes(photos, pairs, values),
    heat(photos, matrix, values, `${reply.kernel} similarity, ${space} space`),
    ...(other ? changes(photos, pairs, { space, ...reply }, { space: other.space, ...other.reply }) : []),
  );
}

function extremes(photos, pairs, values) {
  const digits = digitsFor(values);
  const said = (value) => {
    const [i, j] = pairs[values.indexOf(value)];
    return `${photos[i].name} and ${photos[j].name} (${fixed(value, digits)})`;
  };
  if (values.length === 1) return el("p", { id: "extremes" }, `${said(values[0])}.`);
  return el(
    "p",
    { id: "extremes" },
    `Most alike: ${said(Math.max(...values))}. Least alike: ${said(Math.min(...values))}.`,
  );
}

/** Colours run from the least to the most similar pair; a photo with itself is left out of them. */
function heat(photos, matrix, values, caption) {
  const digits = digitsFor(values);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const step = (value) => (high > low ? Math.round(((value - low) / (high - low)) * (STEPS - 1)) : 0);
  const cell = (i, j) =>
    el("td", { class: i === j ? "itself" : `heat-${step(matrix[i][j])}` }, fixed(matrix[i][j], digits));
  const headers = photos.map((photo) => el("th", { scope: "col" }, label(photo)));
  return el(
    "div",
    { class: "heat-frame" },
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Similarity of every photo with every other" },
      el(
        "table",
        { class: photos.length > MANY ? "heat dense" : "heat", id: "heat" },
        el("caption", { class: "unseen" }, caption),
        el("thead", {}, el("tr", {}, el("td", {}), headers)),
        el(
          "tbody",
          {},
          photos.map((photo, i) =>
            el("tr", {}, el("th", { scope: "row" }, label(photo)), photos.map((_, j) => cell(i, j))),
          ),
        ),
      ),
    ),
    el(
      "div",
      { class: "legend small soft" },
      el("span", { class: "number" }, fixed(low, digits)),
      el(
        "span",
        { class: "ramp", "aria-hidden": "true" },
        Array.from({ length: STEPS }, (_, k) => el("span", { class: `heat-${k}` })),
      ),
      el("span", { class: "number" }, fixed(high, digits)),
      el("span", {}, caption),
    ),
  );
}

function changes(photos, pairs, here, there) {
  const [base, aligned] = here.space === "base" ? [here, there] : [there, here];
  const [before, after] = [base, aligned].map(({ similarities }) => pairs.map(([i, j]) => similarities[i][j]));
  const [from, to] = [ranks(before), ranks(after)];
  const [digitsBefore, digitsAfter] = [digitsFor(before), digitsFor(after)];
  const moved = pairs
    .map((pair, k) => ({ pair, k, by: Math.abs(from[k] - to[k]) }))
    .filter(({ by }) => by > 0)
    .sort((a, b) => b.by - a.by)
    .slice(0, SHOWN);
  const title = el("h3", {}, "What alignment changed");
  if (moved.length === 0) {
    return [el("div", { class: "changed", id: "matrix-changed" }, title, el("p", {}, "The order of the pairs is the same."))];
  }
  const rho = fixed(correlation(from, to), 2);
  const heads = ["Pair", "Rank in base", "Rank in aligned", `Base (${base.kernel})`, `Aligned (${aligned.kernel})`];
  const rows = moved.map(({ pair: [i, j], k }) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, pairLabel(photos[i], photos[j])),
      el("td", { class: "number" }, String(from[k])),
      el(
        "td",
        { class: "number" },
        String(to[k]),
        el("span", { "aria-hidden": "true" }, to[k] < from[k] ? " ▲" : " ▼"),
        el("span", { class: "unseen" }, to[k] < from[k] ? ", more alike" : ", less alike"),
      ),
      el("td", { class: "number" }, fixed(before[k], digitsBefore)),
      el("td", { class: "number" }, fixed(after[k], digitsAfter)),
    ),
  );
  return [
    el(
      "div",
      { class: "changed", id: "matrix-changed" },
      title,
      el(
        "p",
        {},
        `Of ${pairs.length} pairs, ordered from the most alike, these changed their rank the most. ` +
          `Rank correlation of the two spaces: ${rho}.`,
      ),
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "Pairs that changed their rank the most" },
        el(
          "table",
          { class: "figures" },
          el("caption", { class: "unseen" }, "Ranks and similarities, base and aligned"),
          el(
            "thead",
            {},
            el("tr", {}, heads.map((head, k) => el("th", { scope: "col", class: k > 0 && "number" }, head))),
          ),
          el("tbody", {}, rows),
        ),
      ),
    ),
  ];
}
