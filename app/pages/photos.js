// The photos of the page: taken in within the service's limits, shown in the tray, three of them picked.

import { bytes, el } from "./dom.js";
import { PART_BYTES } from "./api.js";

/** Photos on the page at once; their matrix and map stay readable. */
export const MOST = 30;

let made = 0;

/**
 * Files to photos. What the service would refuse is refused here, before anything is sent; nothing is made smaller,
 * for the numbers are those of the file as it is.
 *
 * @returns {Promise<{photos: object[], faults: {name: string, why: string}[]}>} in the order of the files.
 */
export async function takeIn(files, limits, room) {
  const photos = [];
  const faults = [];
  for (const file of files) {
    const fault = ofFile(file, limits) ?? (photos.length >= room ? `the page takes ${MOST} photos at most.` : null);
    if (fault) {
      faults.push({ name: file.name, why: fault });
      continue;
    }
    made += 1;
    const photo = { id: made, file, name: file.name, url: URL.createObjectURL(file), shown: false, vectors: new Map() };
    const size = await measured(photo.url);
    photo.shown = size !== null;
    const why = size && ofSize(size, limits);
    if (why) {
      URL.revokeObjectURL(photo.url);
      faults.push({ name: file.name, why });
    } else photos.push(photo);
  }
  return { photos, faults };
}

function ofFile(file, limits) {
  if (file.size === 0) return "the file is empty.";
  if (file.type && !file.type.startsWith("image/")) return "this is not an image.";
  const most = Math.min(limits.max_image_bytes, limits.max_body_bytes - 2 * PART_BYTES - 3 * file.name.length);
  if (file.size > most) return `it has ${bytes(file.size)}; this service takes ${bytes(most)} at most.`;
  return null;
}

function ofSize([width, height], limits) {
  const is = `it is ${width} × ${height} pixels; this service takes`;
  if (width * height > limits.max_image_pixels) return `${is} ${limits.max_image_pixels / 1e6} million at most.`;
  if (Math.max(width, height) > limits.max_image_side) return `${is} sides up to ${limits.max_image_side}.`;
  if (Math.min(width, height) < limits.min_image_side) return `${is} sides from ${limits.min_image_side} on.`;
  return null;
}

/** [width, height], or null where this browser does not read the format; the service may. */
function measured(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
    image.onerror = () => resolve(null);
    image.src = url;
  });
}

/** The list of photos. Items stay when others come and go, so the focus does too. */
export class Tray {
  /** @param {{picked: (photo) => void, removed: (photo) => void}} on */
  constructor(list, on) {
    this.list = list;
    this.on = on;
    this.items = new Map();
  }

  /** Show these photos, with those picked that are in `chosen`. */
  show(photos, chosen) {
    for (const [photo, item] of this.items) {
      if (!photos.includes(photo)) {
        item.remove();
        this.items.delete(photo);
      }
    }
    for (const photo of photos) {
      if (!this.items.has(photo)) {
        const item = this.item(photo);
        this.items.set(photo, item);
        this.list.append(item);
      }
      const item = this.items.get(photo);
      const [pick] = item.getElementsByClassName("pick");
      pick.setAttribute("aria-pressed", String(chosen.includes(photo)));
      pick.setAttribute("aria-label", `Photo ${photo.number}, ${photo.name}${photo.fault ? ", refused" : ""}`);
      pick.disabled = Boolean(photo.fault);
      item.getElementsByClassName("badge")[0].textContent = photo.number;
    }
    this.list.hidden = photos.length === 0;
  }

  item(photo) {
    const picture = photo.shown
      ? el("img", { src: photo.url, alt: "" })
      : el("span", { class: "blank small" }, "no preview here");
    return el(
      "li",
      { class: "photo" },
      el(
        "button",
        { type: "button", class: "pick", onclick: () => this.on.picked(photo) },
        picture,
        el("span", { class: "badge", "aria-hidden": "true" }),
      ),
      el("span", { class: "name small", title: photo.name, "aria-hidden": "true" }, photo.name),
      el(
        "button",
        { type: "button", class: "remove", "aria-label": `Remove ${photo.name}`, onclick: () => this.remove(photo) },
        "×",
      ),
    );
  }

  /** Take a photo off; the focus goes on to the next one. */
  remove(photo) {
    const item = this.items.get(photo);
    const next = item.nextElementSibling ?? item.previousElementSibling;
    this.on.removed(photo);
    next?.getElementsByClassName("remove")[0].focus();
  }
}
