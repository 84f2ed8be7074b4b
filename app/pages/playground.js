// The playground: photos in, the service's answers out. This file holds the state and the order of things.

import { HOME, Refused, ask, embed, useKey } from "./api.js";
import { byId, el } from "./dom.js";
import { MapView } from "./map.js";
import { draw as drawMatrix } from "./matrix.js";
import { draw as drawOdd, summary } from "./odd.js";
import { MOST, Tray, takeIn } from "./photos.js";
import { Code, texts } from "./snippets.js";

const state = { cards: new Map(), model: "", space: "aligned", compare: false, kernel: "", photos: [], chosen: [] };
const replies = new Map();
const tray = new Tray(byId("tray"), { picked: pick, removed: remove });
const map = new MapView(byId("map-view"));
const codes = Object.fromEntries(["odd", "matrix", "map"].map((view) => [view, new Code(byId(`${view}-code`), view, say)]));

const card = () => state.cards.get(state.model);
const otherSpace = () => (state.space === "aligned" ? "base" : "aligned");
const good = () => state.photos.filter((photo) => !photo.fault);
const judged = () => good().filter((photo) => state.chosen.includes(photo));

function say(text) {
  byId("status").textContent = text;
}

// --- what goes wrong ---------------------------------------------------------------------------

function showFaults(title, lines, again = null) {
  const list = lines.map(({ name, why }) => el("li", {}, name ? el("strong", {}, `${name}: `) : null, why));
  const close = el("button", { type: "button", class: "button slim", onclick: hideFaults }, "Close");
  const retry = el("button", { type: "button", class: "button slim", onclick: again }, "Try again");
  byId("faults").replaceChildren(el("h3", {}, title), el("ul", {}, list), el("div", { class: "row" }, again && retry, close));
  byId("faults").hidden = false;
  byId("faults").scrollIntoView({ block: "nearest" }); // on a phone the results may be what is looked at
}

function hideFaults() {
  byId("faults").hidden = true;
  byId("faults").replaceChildren();
}

const ofPhoto = ({ title, detail }) => `${title}: ${detail.replace(/^image \d+: /, "")}`;

/** Tell of an error of the service; a missing key is asked for. */
function failed(error, again) {
  say("");
  if (!(error instanceof Refused)) {
    showFaults("This page has a fault", [{ why: String(error) }]);
    throw error;
  }
  if (error.status === 401) {
    byId("key-title").textContent = byId("key").value ? "This key was refused" : "This service wants an API key";
    byId("key-form").hidden = false;
    byId("key").focus();
    return;
  }
  showFaults("The service did not do it", [{ why: error.message }], again);
}

// --- the models --------------------------------------------------------------------------------

async function start() {
  hideFaults();
  say("Asking which models are served…");
  try {
    const { models } = await ask("models", { waiting: waits });
    await choose(state.model || models[0].name);
    const options = models.map(({ name }) => el("option", { value: name }, name));
    byId("model").replaceChildren(...options);
    byId("model").value = state.model;
    byId("model-field").hidden = models.length < 2;
  } catch (error) {
    return failed(error, start);
  }
  say("");
  return refresh();
}

/** Ask this model from now on. */
async function choose(name) {
  if (!state.cards.has(name)) {
    state.cards.set(name, await ask(`models/${encodeURIComponent(name)}`, { waiting: waits }));
  }
  state.model = name;
  const both = "base" in card().spaces && "aligned" in card().spaces;
  byId("space-field").hidden = byId("compare-field").hidden = !both;
  if (!both) setSpace(Object.keys(card().spaces)[0], false);
  byId("model-about").textContent = [`Model ${name}`, card().description].filter(Boolean).join(": ");
  byId("model-about").hidden = false;
  byId("most").textContent = most();
}

function setSpace(space, compare) {
  state.space = space;
  state.compare = compare;
  for (const input of document.querySelectorAll("input[name=space]")) input.checked = input.value === space;
  byId("compare").checked = compare;
}

const most = () => Math.min(MOST, card()?.limits.max_vectors ?? MOST);

function waits(seconds) {
  say(`The service is busy or starting; asking again in ${seconds} seconds.`);
}

// --- the photos --------------------------------------------------------------------------------

let adding = Promise.resolve();

/** Take files in, those of one choice after those of another. */
function add(files) {
  adding = adding.then(() => addNow(files));
}

async function addNow(files) {
  if (files.length === 0) return;
  if (!card()) {
    showFaults("Not yet", [{ why: "The service has not said what it takes." }], start);
    return;
  }
  hideFaults();
  const taken = await takeIn(files, card().limits, most() - state.photos.length);
  state.photos.push(...taken.photos);
  fill();
  if (taken.faults.length > 0) showFaults("Not taken", taken.faults);
  refresh();
}

/** The first photos are judged until somebody picks others. */
function fill() {
  for (const photo of good()) {
    if (state.chosen.length < 3 && !state.chosen.includes(photo)) state.chosen.push(photo);
  }
}

function pick(photo) {
  if (state.chosen.includes(photo)) state.chosen.splice(state.chosen.indexOf(photo), 1);
  else state.chosen.push(photo);
  if (state.chosen.length > 3) state.chosen.shift(); // the one picked longest ago
  refresh();
}

function remove(photo) {
  URL.revokeObjectURL(photo.url);
  state.photos = state.photos.filter((other) => other !== photo);
  state.chosen = state.chosen.filter((other) => other !== photo);
  if (state.photos.length === 0) byId("choose").focus();
  refresh();
}

// --- asking ------------------------------------------------------------------------------------

let running = false;
let changed = false;

/** Bring the page up to date; a change in the meantime makes it begin again, with what is known by then. */
async function refresh() {
  state.photos.forEach((photo, i) => Object.assign(photo, { number: i + 1 }));
  tray.show(state.photos, state.chosen);
  byId("count").textContent = state.photos.length ? `${state.photos.length} of ${most()}` : "";
  byId("after-tray").hidden = state.photos.length === 0;
  changed = true;
  if (running || !card()) return;
  running = true;
  try {
    while (changed) {
      changed = false;
      await withOneRetry(bringUpToDate);
    }
  } catch (error) {
    failed(error, () => {
      hideFaults();
      refresh();
    });
  } finally {
    running = false;
  }
}

/** A model that was replaced meanwhile has a new space: what is known of the old one is forgotten. */
async function withOneRetry(task) {
  try {
    await task();
  } catch (error) {
    if (error.problem?.code !== "space_mismatch") throw error;
    replies.clear();
    state.cards.clear();
    for (const photo of state.photos) photo.vectors.clear();
    await choose(state.model);
    await task();
  }
}

async function bringUpToDate() {
  const { model, space, kernel } = state;
  const other = state.compare ? otherSpace() : null;
  for (const each of other ? [space, other] : [space]) await vectors(model, each);
  if (changed) return;
  const [photos, three] = [good(), judged()];
  const triplet = three.length === 3 ? await answers("odd-one-out", three, { model, space, other }) : null;
  const all = photos.length >= 2 ? await answers("similarity", photos, { model, space, other, kernel }) : null;
  if (changed) return;
  show({ photos, three, triplet, all });
}

/** Vectors of all photos that lack one, in this space. */
async function vectors(model, space) {
  const name = `${model} ${space}`;
  const lacking = good().filter((photo) => !photo.vectors.has(name));
  if (lacking.length === 0) return;
  const expected = good().find((photo) => photo.vectors.has(name))?.vectors.get(name).fingerprint;
  const found = (photo, vector, fingerprint) => photo.vectors.set(name, { vector, fingerprint });
  const progress = (n) => say(`Embedding photos: ${n} of ${lacking.length} done.`);
  progress(0);
  const stop = () => changed && (state.model !== model || state.photos.length === 0);
  const faults = await embed(lacking, { model, space, limits: card().limits, expected, waiting: waits, found, progress, stop });
  if (faults.size === 0) return;
  for (const [photo, problem] of faults) {
    photo.fault = ofPhoto(problem);
    state.chosen = state.chosen.filter((chosen) => chosen !== photo);
  }
  fill();
  tray.show(state.photos, state.chosen);
  showFaults("Refused by the service", [...faults.keys()].map((photo) => ({ name: photo.name, why: photo.fault })));
}

/** What was asked and answered in each space, of these photos: by their vectors, which the page has. */
async function answers(path, photos, { model, space, other, kernel }) {
  const one = async (each) => {
    const known = photos.map((photo) => photo.vectors.get(`${model} ${each}`));
    const request = {
      model,
      space: each,
      expect_fingerprint: known[0].fingerprint,
      vectors: known.map(({ vector }) => vector),
    };
    if (kernel) request.kernel = kernel; // the space's own otherwise
    const name = JSON.stringify([path, model, each, kernel, photos.map((photo) => photo.id)]);
    if (!replies.has(name)) replies.set(name, await ask(path, { json: request, waiting: waits }));
    return { space: each, request, reply: replies.get(name) };
  };
  return { photos, path, here: await one(space), other: other ? await one(other) : null };
}

// --- showing -----------------------------------------------------------------------------------

function show({ photos, three, triplet, all }) {
  view("odd", triplet, "Pick three photos, and see which of them the model finds odd.", () => {
    drawOdd(byId("odd-view"), { photos: three, ...triplet.here, other: triplet.other, card: card() });
  });
  byId("kernel-field").hidden = !all;
  view("matrix", all, "It needs two photos.", () => {
    drawMatrix(byId("matrix-view"), { photos, ...all.here, other: all.other });
  });
  view("map", photos.length >= 3 ? all : null, "It needs three photos.", () => {
    map.draw({ photos, ...all.here, other: all.other });
  });
  if (triplet) say(summary(three, triplet.here.reply.results[0]));
  else say(photos.length > 0 ? `${photos.length} photos; ${three.length} of 3 picked.` : "");
}

function view(name, answer, otherwise, draw) {
  if (!answer) {
    if (name === "map") map.clear();
    byId(`${name}-view`).replaceChildren(el("p", { class: "soft empty" }, otherwise));
    codes[name].update(null);
    return;
  }
  draw();
  const { photos, path, here } = answer;
  codes[name].update(texts({ view: name, path, photos, model: state.model, limits: card().limits, ...here }));
}

// --- what people do ----------------------------------------------------------------------------

byId("host").textContent = HOME;
byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // so that the same file can be chosen again
  add(files);
});
byId("clear").addEventListener("click", () => {
  for (const photo of state.photos) URL.revokeObjectURL(photo.url);
  Object.assign(state, { photos: [], chosen: [] });
  hideFaults();
  byId("choose").focus();
  refresh();
});
byId("model").addEventListener("change", async (event) => {
  try {
    await choose(event.target.value);
  } catch (error) {
    event.target.value = state.model;
    failed(error, null);
    return;
  }
  refresh();
});
for (const input of document.querySelectorAll("input[name=space]")) {
  input.addEventListener("change", () => {
    setSpace(input.value, true); // who looks at the other space wants to see the difference
    refresh();
  });
}
byId("compare").addEventListener("change", (event) => {
  state.compare = event.target.checked;
  refresh();
});
byId("kernel").addEventListener("change", (event) => {
  state.kernel = event.target.value;
  refresh();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key-form").hidden = true;
  byId("choose").focus();
  if (card()) refresh();
  else start();
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  byId("drop").classList.add("over");
});
for (const left of ["dragleave", "drop"]) {
  addEventListener(left, (event) => (left === "drop" || !event.relatedTarget) && byId("drop").classList.remove("over"));
}
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  add([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length > 0) add(files);
});

show({ photos: [], three: [], triplet: null, all: null });
start();
