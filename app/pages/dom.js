// Elements, and numbers as text. Text is only ever set as text, so a file's name can be anything.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `class` and others are attributes, `on...` listeners; false and null leave an attribute out. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The element of this page with that id. */
export const byId = (id) => document.getElementById(id);

/** 0.5279 as "52.8 %", with a space that does not break. */
export const percent = (share, digits = 1) => `${(share * 100).toFixed(digits)}\u00a0%`;

/** A number with so many digits after the point, and a real minus; never "−0.00". */
export function fixed(value, digits) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
}

/** Digits after the point that tell values of this spread apart: about three in all. */
export function digitsFor(values) {
  const largest = Math.max(...values.map(Math.abs), 1e-12);
  return Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(largest))));
}

/** 1234567 as "1.2 MB". */
export function bytes(n) {
  if (n < 1000) return `${n} bytes`;
  const [unit, size] = n < 1e6 ? ["kB", 1e3] : ["MB", 1e6];
  return `${(n / size).toFixed(n / size < 10 ? 1 : 0)} ${unit}`;
}

/** A bar that shows a share of 1; the number stands beside it as text. */
export function bar(share, kind = "") {
  const inner = el("span");
  inner.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("div", { class: `bar ${kind}`, "aria-hidden": "true" }, inner);
}

/** What a photo is called in a table: its picture, its number, and for screen readers its name. */
export function label(photo) {
  return el(
    "span",
    { class: "label", title: photo.name },
    thumb(photo),
    el("span", { "aria-hidden": "true" }, String(photo.number)),
    el("span", { class: "unseen" }, photo.name),
  );
}

/** Two photos in one cell. */
export const pairLabel = (a, b) => el("span", { class: "pair" }, label(a), el("span", { class: "soft" }, "and"), label(b));

/** The small picture of a photo, or a blank where the browser cannot read its format. */
export function thumb(photo) {
  return photo.shown ? el("img", { class: "thumb", src: photo.url, alt: "" }) : el("span", { class: "thumb blank" });
}
