// The view in two dimensions: principal components of the similarities, as a picture and as a table.

import { el, fixed, label, percent, svg } from "./dom.js";
import { principal, turnedOnto, unitSize } from "./linear.js";

/** The map stays between draws, so that photos can move from one place to the next. */
export class MapView {
  constructor(root) {
    this.root = root;
    this.groups = new Map();
    new ResizeObserver(() => this.width() !== this.drawnAt && this.last && this.draw(this.last)).observe(root);
  }

  /** Its width in CSS pixels. */
  width() {
    const [column] = getComputedStyle(this.root).gridTemplateColumns.split(" ");
    return Math.max(240, Math.round(parseFloat(column) || this.root.clientWidth));
  }

  /** Forget what is drawn. */
  clear() {
    this.last = null;
    this.picture = null;
    this.groups.clear();
  }

  /**
   * Draw the view.
   *
   * @param {{photos: object[], space: string, reply: object, other?: {space: string, reply: object}}} of
   *   at least three photos and the answers of /similarity.
   */
  draw(of) {
    this.last = of;
    this.drawnAt = this.width();
    const { photos, space, reply, other } = of;
    const found = { [space]: principal(reply.similarities) };
    if (other) found[other.space] = principal(other.reply.similarities);
    const places = mapsOf(found);
    const frame = new Frame(this.drawnAt, photos.length, Object.values(places).flat());
    if (!this.picture) {
      this.lines = svg("g", { class: "moves" });
      this.dots = svg("g");
      this.picture = svg("svg", { role: "img", id: "map-picture" }, this.dots, this.lines);
    }
    this.picture.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    this.picture.setAttribute("aria-label", `Map of ${photos.length} photos, ${space} space; its table follows.`);
    this.place(photos, places[space], other && places[other.space], frame);
    const open = this.root.querySelector("details")?.open;
    this.root.replaceChildren(
      this.picture,
      el(
        "div",
        { class: "beside" },
        explained(found[space], space, reply),
        ...moved(photos, found, places),
        table(photos, found[space].points, space, open),
      ),
    );
  }

  place(photos, here, there, frame) {
    for (const [photo, group] of this.groups) {
      if (!photos.includes(photo)) {
        group.remove();
        this.groups.delete(photo);
      }
    }
    this.lines.replaceChildren();
    photos.forEach((photo, i) => {
      const [x, y] = frame.at(here[i]);
      if (there) {
        const [u, w] = frame.at(there[i]);
        this.lines.append(
          svg("line", { x1: u, y1: w, x2: x, y2: y }),
          svg("circle", { cx: u, cy: w, r: 4 }),
        );
      }
      if (!this.groups.has(photo)) {
        const group = this.mark(photo);
        this.groups.set(photo, group);
        this.dots.append(group);
      }
      const group = this.groups.get(photo);
      group.style.transform = `translate(${x}px, ${y}px)`;
      sized(group, photo, frame.side);
    });
  }

  mark(photo) {
    const picture = photo.shown
      ? svg("image", { href: photo.url, preserveAspectRatio: "xMidYMid slice" })
      : svg("rect", { class: "blank" });
    return svg(
      "g",
      { class: "mark" },
      svg("title", {}, photo.name),
      picture,
      svg("rect", { class: "edge", rx: 4 }),
      svg("rect", { class: "plate", rx: 3 }),
      svg("text", { "text-anchor": "middle", "dominant-baseline": "central" }),
    );
  }
}

function sized(group, photo, side) {
  const [, picture, edge, plate, text] = group.children;
  for (const part of [picture, edge]) {
    for (const [name, value] of Object.entries({ x: -side / 2, y: -side / 2, width: side, height: side })) {
      part.setAttribute(name, value);
    }
  }
  const [width, height] = [photo.number > 9 ? 22 : 16, 16];
  const [x, y] = [-side / 2 + 2, -side / 2 + 2];
  for (const [name, value] of Object.entries({ x, y, width, height })) plate.setAttribute(name, value);
  text.setAttribute("x", x + width / 2);
  text.setAttribute("y", y + height / 2);
  text.textContent = photo.number;
}

/** Coordinates as drawn: both maps at the same size, the base turned onto the aligned one. */
function mapsOf(found) {
  const places = Object.fromEntries(Object.entries(found).map(([space, { points }]) => [space, unitSize(points)]));
  if (places.aligned && places.base) places.base = turnedOnto(places.base, places.aligned);
  return places;
}

/** From coordinates to pixels: both axes alike, all points inside, as large as fits. */
class Frame {
  constructor(width, n, points) {
    this.width = width;
    this.side = Math.round(Math.min(72, Math.max(34, (width / Math.sqrt(n)) * 0.3)));
    const margin = this.side / 2 + 8;
    const ends = [0, 1].map((k) => points.map((point) => point[k])).map((of) => [Math.min(...of), Math.max(...of)]);
    this.middle = ends.map(([low, high]) => (low + high) / 2);
    const [wide, high] = ends.map(([low, high]) => Math.max(high - low, 1e-9));
    this.scale = Math.min((width - 2 * margin) / wide, (Math.min(width * 0.8, 520) - 2 * margin) / high);
    // A map that is wide and low gets a low frame.
    this.height = Math.round(Math.max(this.scale * high + 2 * margin, width * 0.3));
  }

  at([x, y]) {
    const [x0, y0] = this.middle;
    return [this.width / 2 + (x - x0) * this.scale, this.height / 2 - (y - y0) * this.scale];
  }
}

function explained({ share, shares }, space, reply) {
  const each = shares.map((s) => percent(s, 0)).join(" and ");
  return el(
    "p",
    { class: "soft", id: "map-share" },
    `The first two principal components of the ${reply.kernel} similarities above, computed in this page. They show `,
    el("strong", { class: "number" }, percent(share, 0)),
    ` of the variance of these photos in the ${space} space (${each}); photos that lie together may be apart `,
    "in what is not shown. The directions have no names.",
  );
}

function moved(photos, found, places) {
  if (!places.aligned || !places.base) return [];
  const far = photos.map((photo, i) => ({
    photo,
    by: Math.hypot(places.aligned[i][0] - places.base[i][0], places.aligned[i][1] - places.base[i][1]),
  }));
  far.sort((a, b) => b.by - a.by);
  const names = far.slice(0, 3).map(({ photo }) => photo.name);
  const [base, aligned] = [found.base, found.aligned].map(({ share }) => percent(share, 0));
  return [
    el(
      "div",
      { class: "changed", id: "map-changed" },
      el("h3", {}, "What alignment changed"),
      el(
        "p",
        {},
        `A line leads from each photo to its place in the other space; both maps are drawn at one size, the base ` +
          `turned onto the aligned. The farthest moved: ${names.join(", ")}. ` +
          `Two dimensions show ${base} of the variance in base, ${aligned} in aligned.`,
      ),
    ),
  ];
}

function table(photos, points, space, open) {
  return el(
    "details",
    { open: open ? "" : null },
    el("summary", {}, "The map as a table"),
    el(
      "table",
      { class: "figures", id: "map-table" },
      el("caption", { class: "unseen" }, `Coordinates in the ${space} space`),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "Photo"),
          el("th", { scope: "col", class: "number" }, "First"),
          el("th", { scope: "col", class: "number" }, "Second"),
        ),
      ),
      el(
        "tbody",
        {},
        photos.map((photo, i) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, label(photo)),
            points[i].map((value) => el("td", { class: "number" }, fixed(value, 3))),
          ),
        ),
      ),
    ),
  );
}
