// Requests and code that give the numbers of a view, for the photos, model and space that it shows.

import { HOME, PART_BYTES, keyed } from "./api.js";
import { el } from "./dom.js";

/** A word for a POSIX shell. */
export const shell = (text) => (/^[\w/:=.@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** A photo as a curl form field; its name may hold what curl reads as syntax. */
function formFile(name) {
  const safe = name.startsWith("-") ? `./${name}` : name;
  return shell(/[,;"\\]/.test(safe) ? `images=@"${safe.replace(/["\\]/g, "\\$&")}"` : `images=@${safe}`);
}

function curl({ path, photos, model, space, limits, request }) {
  const sent = photos.reduce((sum, photo) => sum + photo.file.size + photo.name.length * 3 + PART_BYTES, PART_BYTES);
  if (photos.length > limits.max_images || sent > limits.max_body_bytes) {
    return "# These photos are more than one request may have here. The Python code sends several.";
  }
  const key = keyed() ? [`-H "Authorization: Bearer $ALIGNET_KEY"`] : [];
  const fields = [...photos.map((photo) => formFile(photo.name)), shell(`model=${model}`), `space=${space}`];
  if (request.kernel) fields.push(`kernel=${request.kernel}`);
  const parts = [`curl -sS ${shell(`${HOME}/${path}`)}`, ...key, ...fields.map((field) => `-F ${field}`)];
  return `# in the folder of the photos\n${parts.join(" \\\n  ")}`;
}

const python = (text) => JSON.stringify(text); // a JSON string is a Python string

function opening({ photos, model }, imports = "") {
  return `${imports}from alignet_client import Client

photos = [${photos.map((photo) => python(photo.name)).join(", ")}]  # in this folder
${keyed() ? "# the variable ALIGNET_KEY has the API key\n" : ""}with Client(${python(HOME)}, model=${python(model)}) as client:
`;
}

function similarities({ space, request }) {
  const kernel = request.kernel ? `, kernel=${python(request.kernel)}` : "";
  return `    vectors = client.embed(photos, space=${python(space)})
    found = client.similarity(vectors=vectors, space=${python(space)}${kernel})`;
}

const CODE = {
  odd: (of) => `${opening(of)}    judged = client.odd_one_out(photos, space=${python(of.space)}).results[0]
print(judged.odd_one_out, judged.probabilities, judged.similarities)
print(judged.entropy, judged.entropy_normalized)`,
  matrix: (of) => `${opening(of)}${similarities(of)}
print(found.kernel, found.matrix)`,
  map: (of) => `${opening(of, "import numpy as np\n")}${similarities(of)}
centring = np.eye(len(photos)) - 1 / len(photos)
values, vectors = np.linalg.eigh(centring @ found.matrix @ centring)  # in ascending order
points = vectors[:, :-3:-1] * np.sqrt(values[:-3:-1].clip(0))  # [n, 2]; an axis has no sign of its own
print(points, values[:-3:-1].sum() / values.clip(0).sum())`,
};

const KINDS = {
  curl: { title: "curl", note: "Sends the files." },
  python: { title: "Python", note: "Sends the files; pip install 'alignet-serve[client]'." },
  request: { title: "Request", note: "What this page sent; long vectors are cut here, but copied whole." },
  reply: { title: "Reply", note: "What the service answered." },
};

/**
 * The texts of one view.
 *
 * @param {{view: "odd"|"matrix"|"map", path: string, photos: object[], model: string, space: string, limits: object,
 *   request: object, reply: object}} of
 */
export function texts(of) {
  return {
    curl: curl(of),
    python: CODE[of.view](of),
    request: JSON.stringify(of.request, null, 1),
    reply: JSON.stringify(of.reply, null, 1),
  };
}

const cut = (text) => text.replace(/"([A-Za-z0-9+/=]{24})[A-Za-z0-9+/=]{24,}"/g, '"$1…"');

/** A block with a choice of texts and a button that copies; it stays open, and at its choice, between updates. */
export class Code {
  /** @param {(text: string) => void} say tells those who cannot see that it is copied. */
  constructor(root, name, say) {
    this.root = root;
    this.name = name;
    this.say = say;
    this.kind = "curl";
    this.code = el("code", { id: `${name}-text` });
    this.note = el("p", { class: "soft small" });
    this.button = el("button", { type: "button", class: "button slim push", onclick: () => this.copy() }, "Copy");
    root.replaceChildren(
      el(
        "details",
        {},
        el("summary", {}, "Request and code"),
        el(
          "div",
          { class: "code" },
          el(
            "fieldset",
            { class: "field" },
            el("legend", { class: "unseen" }, "Language"),
            el("div", { class: "choice" }, Object.keys(KINDS).map((kind) => this.option(kind))),
          ),
          el("div", { class: "row" }, this.note, this.button),
          el("pre", { tabindex: "0" }, this.code),
        ),
      ),
    );
    root.hidden = true;
  }

  option(kind) {
    const input = el("input", {
      type: "radio",
      name: `${this.name}-language`,
      value: kind,
      checked: kind === this.kind ? "" : null,
      onchange: () => {
        this.kind = kind;
        this.show();
      },
    });
    return el("label", {}, input, KINDS[kind].title);
  }

  /** Show other texts; none hide the block. */
  update(given) {
    this.texts = given;
    this.root.hidden = !given;
    if (given) this.show();
  }

  show() {
    this.code.textContent = cut(this.texts[this.kind]);
    this.note.textContent = KINDS[this.kind].note;
    this.button.textContent = "Copy";
  }

  async copy() {
    const done = await copied(this.texts[this.kind]);
    this.button.textContent = done ? "Copied" : "Press Ctrl+C";
    this.say(done ? `${KINDS[this.kind].title} copied.` : "The text is selected; press Ctrl+C.");
    if (!done) getSelection().selectAllChildren(this.code);
  }
}

/** Whether the text is in the clipboard; a browser gives it to pages of secure origins only, so there is an old way. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "unseen", readonly: "" });
    area.value = text;
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}
