// A session of odd-one-out trials: consent, practice, trials with a fixation cross, breaks, thanks.
//
// Times are true to a frame: the three pictures are loaded and decoded before the cross ends, the onset is the frame
// after the one that shows them, and the answer has the time of its event. An answer is sent until the service says
// that it is on the disk; sending it twice stores it once.

import { byId, el } from "./dom.js";

const KEY = "alignet-judge";
const KEYS = { 1: 0, 2: 1, 3: 2, ArrowLeft: 0, ArrowDown: 1, ArrowRight: 2 };
const PLACES = ["first", "second", "third"];
const SCREENS = ["wait", "consent", "how", "pause", "sure", "end", "fault"];
const TRIES = 6;

let study = null;
let session = sessionStorage.getItem(KEY);
let answer = null; // what an answer is given to while the photos are there

class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `The service answered ${status}.`);
    this.code = problem.code;
    this.status = status;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));

/** JSON of a path. Throws Refused, or TypeError where nobody answers. */
async function ask(path, body) {
  const headers = session ? { "X-Judge-Session": session } : {};
  if (body) headers["Content-Type"] = "application/json";
  const reply = await fetch(`judge/${path}`, {
    method: body ? "POST" : "GET",
    headers,
    body: body ? JSON.stringify(body) : undefined,
  });
  const found = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Refused(reply.status, found);
  return found;
}

/** The same, again and again while nobody answers or the service is not ready; the last fault is thrown. */
async function askUntil(path, body) {
  for (let tries = 1; ; tries++) {
    try {
      return await ask(path, body);
    } catch (error) {
      const passing = !(error instanceof Refused) || error.status >= 500 || error.status === 429;
      if (!passing || tries === TRIES) throw error;
      byId("where").textContent = "No connection; your answer is kept and sent again";
      await pause(Math.min(500 * 2 ** tries, 8000));
    }
  }
}

function say(text) {
  byId("said").textContent = text;
}

/** Show one of the screens with text, or, without a name, the stage of the trials. */
function show(name) {
  byId("text").hidden = !name;
  byId("stage").hidden = Boolean(name);
  for (const screen of SCREENS) byId(screen).hidden = screen !== name;
  if (name) {
    window.scrollTo(0, 0);
    byId("title").focus({ preventScroll: true });
  }
}

function fault(title, text, retry) {
  byId("fault-title").textContent = title;
  byId("fault-text").textContent = text;
  byId("again").hidden = !retry;
  byId("again").onclick = retry ?? null;
  show("fault");
  if (retry) byId("again").focus();
}

/** Where something went wrong: what can be done about it. */
function failed(error, retry) {
  if (!(error instanceof Refused)) {
    fault("No connection", "Your answers so far are stored. Try again when you are online.", retry);
  } else if (error.code === "session_not_found") {
    forget();
    fault("This session is over", "It is not known here any more. You can begin another one.", open);
  } else {
    fault("This does not work now", error.message, retry);
  }
}

function forget() {
  session = null;
  sessionStorage.removeItem(KEY);
}

const paragraphs = (text) => text.split(/\n\s*\n/).map((part) => el("p", {}, part.trim()));

async function open() {
  try {
    study = await ask("study");
  } catch (error) {
    failed(error, open);
    return;
  }
  document.title = study.title;
  byId("title").textContent = study.title;
  byId("question").textContent = study.title;
  if (study.state !== "open") {
    if (study.state === "failed") {
      fault("This study cannot be run", "Whoever runs it finds the reason in the log of the service.", null);
      return;
    }
    byId("wait-text").textContent = "The photos are getting ready. This page goes on by itself.";
    byId("wait-bar").value = study.prepared;
    show("wait");
    setTimeout(open, 1000);
    return;
  }
  byId("how-text").replaceChildren(...paragraphs(study.instructions));
  byId("thanks").replaceChildren(...paragraphs(study.thanks));
  const practice = study.practice ? ` after ${study.practice} for practice, with feedback` : "";
  byId("how-long").textContent = `There are ${study.trials} trials${practice}.`;
  if (session) {
    await resume();
  } else {
    consent();
  }
}

function consent() {
  byId("consent-text").replaceChildren(...paragraphs(study.consent));
  byId("code-field").hidden = !study.participant_codes;
  byId("agreed").checked = false;
  byId("begin").disabled = true;
  show("consent");
}

async function begin(event) {
  event.preventDefault();
  const code = byId("code").value.trim();
  byId("begin").disabled = true;
  try {
    const body = { consent: true };
    if (study.needs_invitation) body.invitation = decodeURIComponent(location.hash.slice(1));
    if (study.participant_codes && code) body.code = code;
    session = (await ask("session", body)).session;
    sessionStorage.setItem(KEY, session);
    show("how");
    byId("start").focus();
  } catch (error) {
    failed(error, consent);
  }
}

async function resume() {
  try {
    const standing = await ask("trial");
    if (!standing.trial) {
      end(standing);
    } else if (!standing.done) {
      show("how");
      byId("start").focus();
    } else {
      rest(standing, "Welcome back");
    }
  } catch (error) {
    failed(error, open);
  }
}

function rest(standing, title) {
  const share = standing.done / standing.total;
  byId("pause-title").textContent = title;
  byId("pause-text").textContent = `You have done ${standing.done} of ${standing.total}. Go on whenever you like.`;
  byId("pause-bar").value = share;
  show("pause");
  byId("go-on").onclick = () => run(standing);
  byId("go-on").focus();
}

/** One trial after the other, until there is a break or none is left. */
async function run(standing) {
  try {
    let now = standing ?? (await ask("trial"));
    while (now.trial) {
      const done = await one(now);
      if (done.trial?.pause) {
        rest(done, "Time for a break");
        return;
      }
      now = done;
    }
    end(now);
  } catch (error) {
    answer = null;
    failed(error, () => run());
  }
}

async function one(standing) {
  const { trial, done, total } = standing;
  show(null);
  byId("where").textContent = trial.practice ? `Practice ${done + 1} of ${study.practice}` : `${done + 1} of ${total}`;
  byId("bar").value = done / total;
  byId("feedback-text").textContent = "";
  byId("three").hidden = true;
  byId("three").replaceChildren();
  byId("cross").hidden = false;
  const [pictures] = await Promise.all([load(trial.photos), pause(trial.fixation_ms)]);
  const choice = await given(trial, pictures);
  if (!trial.practice) {
    byId("three").hidden = true;
    byId("cross").hidden = false;
  }
  let reply;
  try {
    reply = await askUntil("choice", { trial: trial.trial, ...choice });
  } catch (error) {
    // Answered already in another tab, or impossibly timed: the service knows which trial is next.
    if (!["choice_conflict", "trial_not_found", "invalid_request"].includes(error.code)) throw error;
    reply = await askUntil("trial");
  }
  if (trial.practice && typeof reply.right === "boolean") await feedback(reply.right);
  return reply;
}

/** Three pictures that are loaded and decoded. */
async function load(paths) {
  const pictures = paths.map((path, place) => {
    const picture = new Image();
    picture.src = path.slice(1);
    picture.alt = `${PLACES[place]} photo`;
    picture.draggable = false;
    return picture;
  });
  await Promise.all(pictures.map((picture) => picture.decode().catch(() => missing(picture))));
  return pictures;
}

async function missing(picture) {
  for (let tries = 1; tries <= TRIES; tries++) {
    await pause(400 * tries);
    const source = picture.src;
    picture.src = "";
    picture.src = source;
    if (await picture.decode().then(() => true, () => false)) return;
  }
  throw new TypeError("a picture does not load");
}

/** Show the pictures and wait for an answer: {odd, rt_ms, input}. */
async function given(trial, pictures) {
  const buttons = pictures.map((picture, place) =>
    el(
      "button",
      { type: "button", class: "photo", "aria-label": `The ${PLACES[place]} photo is the odd one` },
      picture,
      el("span", { class: "number", "aria-hidden": "true" }, String(place + 1)),
    ),
  );
  await frame();
  byId("cross").hidden = true;
  byId("three").replaceChildren(...buttons);
  byId("three").hidden = false;
  const onset = await frame(); // the frame before this one has shown them
  byId("three").focus({ preventScroll: true });
  say(`${byId("where").textContent}. Choose 1, 2 or 3.`);
  return new Promise((resolve) => {
    let timer = null;
    answer = (odd, time, input) => {
      if (time < onset) return; // pressed before there was anything to see
      answer = null;
      clearTimeout(timer);
      for (const button of buttons) button.disabled = true;
      if (odd !== null) buttons[odd].classList.add("chosen");
      resolve({ odd, rt_ms: time - onset, input });
    };
    buttons.forEach((button, place) => {
      // A click by the keyboard (Enter on a focused photo) has no pointer, and no detail.
      button.onclick = (event) => answer?.(place, event.timeStamp, event.detail ? "pointer" : "key");
    });
    if (trial.answer_seconds) {
      timer = setTimeout(() => answer?.(null, performance.now(), "none"), trial.answer_seconds * 1000);
    }
  });
}

function feedback(right) {
  const text = right
    ? "Yes: the other two show the same thing."
    : "Look again: two of them show the same thing, one from nearer. The third is the odd one.";
  byId("feedback-text").textContent = text;
  say(text);
  byId("next").hidden = false;
  byId("next").focus();
  return new Promise((resolve) => {
    byId("next").onclick = () => {
      byId("next").hidden = true;
      resolve();
    };
  });
}

function end(standing) {
  const { answered, median_ms: median } = standing.summary;
  const rows = [["Trials answered", String(answered)]];
  if (median !== null) rows.push(["Your usual time", `${(median / 1000).toFixed(1)} s`]);
  byId("summary").replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  show("end");
  say("That was all. Thank you.");
}

function withdraw(from) {
  show("sure");
  byId("keep").focus();
  byId("keep").onclick = () => show(from);
  byId("delete").onclick = async () => {
    try {
      const { deleted } = await ask("withdraw", {});
      forget();
      fault("Your answers are deleted", `${deleted} answers have been removed. You can close this page.`, null);
    } catch (error) {
      failed(error, () => withdraw(from));
    }
  };
}

document.addEventListener("keydown", (event) => {
  if (!answer || !(event.key in KEYS) || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  answer(KEYS[event.key], event.timeStamp, "key");
});
byId("agreed").addEventListener("change", () => (byId("begin").disabled = !byId("agreed").checked));
byId("agree").addEventListener("submit", begin);
byId("start").addEventListener("click", () => run());
for (const button of document.querySelectorAll("[data-withdraw]")) {
  button.addEventListener("click", () => withdraw(button.closest("section").id));
}

show("wait");
open();
