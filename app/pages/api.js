// Asking the service: only its public paths, only where this page came from.

const STORE = "alignet-key";
const TRIES = 4;

/** Where the service is, without a slash at the end: the page may stand behind a path of a proxy. */
export const HOME = new URL(".", document.baseURI).href.replace(/\/$/, "");

let key = stored();

function stored() {
  try {
    return sessionStorage.getItem(STORE) ?? "";
  } catch {
    return ""; // storage is blocked: the key lives as long as the page
  }
}

/** Whether a key is sent. */
export const keyed = () => key !== "";

/** Send this key from now on; it is kept for this tab only. */
export function useKey(given) {
  key = given;
  try {
    sessionStorage.setItem(STORE, given);
  } catch {
    // as above
  }
}

/** A refusal of the service, with its problem: code, detail, index, limit. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.title ? `${problem.title}: ${problem.detail}` : problem.detail);
    this.status = status;
    this.problem = problem;
  }
}

/**
 * The JSON answer of a path. A busy or starting service is asked again when it says so.
 *
 * @param {string} path without a slash at the start.
 * @param {{json?: object, form?: FormData, waiting?: (seconds: number) => void}} options
 * @throws {Refused} the service's problem, or that nobody answered.
 */
export async function ask(path, { json, form, waiting } = {}) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (json) headers["Content-Type"] = "application/json";
  const body = json ? JSON.stringify(json) : form;
  for (let attempt = 1; ; attempt += 1) {
    let reply;
    try {
      reply = await fetch(`${HOME}/${path}`, {
        method: body ? "POST" : "GET",
        headers,
        body,
        credentials: "same-origin",
        cache: "no-store",
      });
    } catch {
      const detail = "The service did not answer, or a photo has changed on the disk since it was chosen.";
      throw new Refused(0, { code: "no_answer", detail });
    }
    if (reply.ok) return reply.json();
    const problem = await problemOf(reply);
    const later = Number(reply.headers.get("Retry-After"));
    if (![429, 503].includes(reply.status) || !later || attempt === TRIES) throw new Refused(reply.status, problem);
    waiting?.(later);
    await new Promise((resolve) => setTimeout(resolve, later * 1000));
  }
}

async function problemOf(reply) {
  try {
    return await reply.json();
  } catch {
    return { code: "no_problem", detail: `The service, or something before it, answered ${reply.status}.` };
  }
}

// What a part of a form takes besides its file: its headers and a boundary.
export const PART_BYTES = 1024;

/** Photos in groups that one request may have; few at a time, so that progress is seen. */
export function groups(photos, limits, most = 8) {
  const count = Math.max(1, Math.min(most, limits.max_images, limits.max_admitted_images));
  const out = [];
  let size = Infinity;
  for (const photo of photos) {
    const more = photo.file.size + photo.name.length * 3 + PART_BYTES;
    if (size + more > limits.max_body_bytes || out.at(-1).length === count) {
      out.push([]);
      size = PART_BYTES; // of the other fields
    }
    out.at(-1).push(photo);
    size += more;
  }
  return out;
}

/**
 * Vectors of photos, as base64 of float32, each file sent once and as it is.
 *
 * `found(photo, vector, fingerprint)` is told of each; `stop()` is asked between requests.
 *
 * @returns {Promise<Map>} of the photos that were refused, to the service's problem.
 * @throws {Refused}
 */
export async function embed(photos, { model, space, limits, expected, waiting, found, progress, stop }) {
  const faults = new Map();
  let fingerprint = expected;
  let done = 0;
  for (const group of groups(photos, limits)) {
    if (stop()) break;
    const form = new FormData();
    for (const photo of group) form.append("images", photo.file, photo.name);
    const fields = { model, space, encoding: "base64", on_error: "partial" };
    if (fingerprint) fields.expect_fingerprint = fingerprint;
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    const reply = await ask("embed", { form, waiting });
    fingerprint = reply.fingerprint;
    for (const item of reply.data) {
      if (item.error) faults.set(group[item.index], item.error);
      else found(group[item.index], item.embedding, fingerprint);
    }
    done += group.length;
    progress(done);
  }
  return faults;
}
