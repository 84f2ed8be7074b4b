// The view of one triplet: which is the odd one, how sure the model is, and what alignment changed.

import { bar, digitsFor, el, fixed, pairLabel, percent, thumb } from "./dom.js";

// The pairs of the API's `similarities`; the photo that is not in a pair is the odd one if that pair wins.
const PAIRS = [
  [0, 1],
  [0, 2],
  [1, 2],
];

/** The words for a normalised entropy. They are this page's; the number beside them is the service's. */
export function certainty(entropy) {
  if (entropy < 0.5) return "sure";
  if (entropy < 0.8) return "fairly sure";
  if (entropy < 0.95) return "unsure";
  return "close to guessing";
}

/** One sentence for those who listen. */
export function summary(photos, judged) {
  const sure = `The model is ${certainty(judged.entropy_normalized)}.`;
  if (judged.odd_one_out === null) return `No odd one out: ${reasonFor(judged)}. ${sure}`;
  const p = judged.probabilities[judged.odd_one_out];
  return `Odd one out: ${photos[judged.odd_one_out].name}, with ${percent(p, 0)}. ${sure}`;
}

const reasonFor = (judged) => (judged.abstained === "tie" ? "an exact tie" : `abstained by ${judged.abstained}`);

/**
 * Draw the view.
 *
 * @param {Element} root
 * @param {{photos: object[], space: string, reply: object, other?: {space: string, reply: object}, card: object}} of
 *   three photos in the order of the request, the answer of /odd-one-out, and that in the other space if asked for.
 */
export function draw(root, { photos, space, reply, other, card }) {
  const [judged] = reply.results;
  const against = other && { space: other.space, judged: other.reply.results[0] };
  root.replaceChildren(
    el("ol", { class: "three" }, photos.map((photo, i) => third(photo, i, space, judged, against))),
    el("div", { class: "beside" }, doubt(judged, reply, card.spaces[space]), pairs(photos, judged)),
    ...(against ? changes(photos, { space, judged }, against) : []),
  );
}

function third(photo, i, space, judged, against) {
  const odd = judged.odd_one_out === i;
  const rows = [chance(space, judged, i, Boolean(against))];
  if (against) rows.push(chance(against.space, against.judged, i, true));
  if (space === "aligned") rows.reverse(); // before, then after
  return el(
    "li",
    { class: odd ? "third odd" : "third", "data-index": i },
    el("div", { class: "frame" }, thumb(photo), odd && el("strong", { class: "flag" }, "odd one out")),
    el("span", { class: "name small", title: photo.name }, photo.name),
    rows,
  );
}

function chance(space, judged, i, named) {
  const p = judged.probabilities[i];
  return el(
    "div",
    { class: named ? "chance both" : "chance", "data-space": space },
    el(
      "p",
      {},
      named && el("span", { class: "soft small" }, `${space} `),
      el("span", { class: "p number" }, percent(p)),
      !named && el("span", { class: "unseen" }, " chance of being the odd one"),
    ),
    bar(p, `${space} ${judged.odd_one_out === i ? "odd" : ""}`),
  );
}

function doubt(judged, reply, space) {
  const share = judged.entropy_normalized;
  const fitted = reply.calibrated
    ? `The chances are calibrated: their temperature, ${Number(reply.temperature.toPrecision(4))}, was fitted to human ` +
      `choices (${space.calibrated_on}).`
    : "The chances are not calibrated: no temperature was fitted to people for this space, so read their order, " +
      "not their size.";
  return el(
    "div",
    { class: "doubt" },
    el(
      "p",
      {},
      judged.odd_one_out === null && `No odd one out: ${reasonFor(judged)}. `,
      "The model is ",
      el("strong", {}, certainty(share)),
      ": entropy ",
      el("span", { class: "number", id: "entropy" }, `${fixed(judged.entropy, 3)} nats`),
      ", ",
      el("span", { class: "number", id: "entropy-share" }, percent(share)),
      " of ln 3, which would be a pure guess.",
    ),
    bar(share, "entropy"),
    el("p", { class: "soft small", id: "calibration" }, fitted),
  );
}

function pairs(photos, judged) {
  const digits = digitsFor(judged.similarities);
  const best = judged.odd_one_out === null ? -1 : 2 - judged.odd_one_out;
  const rows = PAIRS.map(([a, b], k) =>
    el(
      "tr",
      { class: k === best ? "best" : "" },
      el("th", { scope: "row" }, pairLabel(photos[a], photos[b])),
      el("td", { class: "number" }, fixed(judged.similarities[k], digits)),
      el("td", { class: "number" }, percent(judged.probabilities[2 - k])),
    ),
  );
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      { class: "figures", id: "pairs" },
      el("caption", { class: "unseen" }, "The three pairs"),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "Pair"),
          el("th", { scope: "col", class: "number" }, "Similarity"),
          el("th", { scope: "col", class: "number" }, "Most alike"),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );
}

function changes(photos, here, there) {
  const [base, aligned] = here.space === "base" ? [here, there] : [there, here];
  const name = (judged) => (judged.odd_one_out === null ? "none" : photos[judged.odd_one_out].name);
  const p = (judged, i) => percent(judged.probabilities[i]);
  const [was, is] = [base.judged.odd_one_out, aligned.judged.odd_one_out];
  const picked =
    was === is
      ? is === null
        ? "Neither space names an odd one."
        : `Both pick ${name(aligned.judged)}; its chance goes from ${p(base.judged, is)} in base to ` +
          `${p(aligned.judged, is)} in aligned.`
      : `The answer changes: base picks ${name(base.judged)}, aligned ${name(aligned.judged)}.`;
  const before = base.judged.entropy_normalized;
  const after = aligned.judged.entropy_normalized;
  const entropy = ` Entropy goes from ${percent(before)} of ln 3 to ${percent(after)}.`;
  return [
    el(
      "div",
      { class: "changed", id: "odd-changed" },
      el("h3", {}, "What alignment changed"),
      el("p", {}, picked + entropy),
    ),
  ];
}
